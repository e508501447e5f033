"""Weights from GPU to GPU, by vLLM's own trainer-side classes: NCCL, or CUDA IPC where both share the GPUs.

Neither runs without a GPU. What is sent to servers is tested with vLLM's code on a CPU; the copy itself is vLLM's.
"""

from __future__ import annotations

import socket
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from vllm.distributed.weight_transfer import HTTPVLLMWeightSyncClient, ParamMeta, WeightSource
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCTrainerWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

from exprl.engines.access import is_here
from exprl.engines.transfer.base import BUCKET_BYTES, Group, WeightTransfer
from exprl.engines.transfer.buckets import in_buckets
from exprl.engines.transfer.control import ControlError, ControlPlane
from exprl.waiting import Wait

if TYPE_CHECKING:
    from torch import Tensor

_LOOKS = 0.2
"""Seconds between two looks at whether a wait is in vain."""


class DeviceTransfer(WeightTransfer):
    """Passes buckets of tensors on this process's device; tied weights once, as a checkpoint has them.

    Args:
        bucket_bytes: how much is gathered on the device at a time.
        rank, tied: see `WeightTransfer`.
    """

    def __init__(self, *, bucket_bytes: int = BUCKET_BYTES, **trainer: Any) -> None:
        super().__init__(**trainer)
        self.bucket_bytes = bucket_bytes
        self._engine: Any = None

    def close(self) -> None:
        """Give the connection up."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def _pass(self, weights: Iterator[tuple[str, Tensor]], group: Group, label: str) -> None:
        once = ((name, tensor) for name, tensor in weights if name not in self.tied)
        for tensors, _ in in_buckets(once, self.bucket_bytes):
            self._offer({name: tensor.to(_device()) for name, tensor in tensors.items()}, group)

    @abstractmethod
    def _offer(self, tensors: Mapping[str, Tensor], group: Group) -> None:
        """Have each server take the tensors."""


class NCCLTransfer(DeviceTransfer):
    """Broadcasts from rank 0 to the workers of all servers, one NCCL group of them all.

    A collective ends for all or for none: when one server fails while it goes on, the transfer is lost for the others
    as well, and all are named. The group is made by the next `send` after a `connect`, or to other servers.

    Args:
        address: of this machine, as servers reach it; None: the one on the way to the first server.
        bucket_bytes, rank, tied: see `DeviceTransfer`.
    """

    name = "nccl"

    def __init__(self, *, address: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._address = address
        self._members: list[str] = []

    def _introduce(self, group: Group) -> None:
        """A group is of all servers of a transfer, so only that can make it."""
        if group.standing:
            self.close()

    def _pass(self, weights: Iterator[tuple[str, Tensor]], group: Group, label: str) -> None:
        if self._engine is None or [server.url for server in group.standing] != self._members:
            self._meet(group)
        super()._pass(weights, group, label)
        if not group.standing:
            self._engine = None  # what hangs in it cannot be ended

    def _meet(self, group: Group) -> None:
        self.close()
        sizes: dict[str, int] = {}
        group.each(lambda server: sizes.update({server.url: server.world_size()}))
        self._members = [server.url for server in group.standing]
        if not self._members:
            return
        first = [1 + sum(sizes[url] for url in self._members[:place]) for place in range(len(self._members))]
        client = _Client(group, dict(zip(self._members, first, strict=True)))
        address = self._address or _own_address(self._members[0])
        info = NCCLTrainerInitInfo(
            master_address=address, master_port=_free_port(address), world_size=1 + sum(sizes.values()), rank=0
        )

        def meet() -> None:
            self._engine = NCCLTrainerWeightTransferEngine.trainer_init(info, client=client, source=_Source({}))

        _together(meet, group)

    def _offer(self, tensors: Mapping[str, Tensor], group: Group) -> None:
        if group.standing:
            self._engine.client, self._engine.source = _Client(group), _Source(tensors)
            _together(self._engine.send_weights, group)


class IPCTransfer(DeviceTransfer):
    """Shows servers the trainer's GPU memory: each of a server's workers must share its GPU with a rank of the trainer.

    Handles travel pickled, which vLLM takes with `VLLM_ALLOW_INSECURE_SERIALIZATION=1` alone: only for servers on this
    machine that nobody else reaches.
    """

    name = "ipc"
    every_rank = True

    def environment(self) -> dict[str, str]:
        """What a server must have in its environment."""
        return {**super().environment(), "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}

    def _introduce(self, group: Group) -> None:
        for server in list(group.standing):
            if not is_here(server.url):
                group.fail(server, ControlError(f"{server.url}: CUDA IPC reaches servers on this machine only"))
        info = IPCTrainerInitInfo(rank=0 if self.sends else 1, packed=True)
        self._engine = IPCTrainerWeightTransferEngine.trainer_init(info, client=_Client(group), source=_Source({}))

    def _offer(self, tensors: Mapping[str, Tensor], group: Group) -> None:
        """All ranks, also when no server is left: their handles are gathered."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        self._engine.packed_buffer_size_bytes = size
        self._engine.client, self._engine.source = _Client(group), _Source(tensors)
        self._engine.send_weights()


class _Source(WeightSource):  # type: ignore[misc]
    """One bucket, as vLLM's classes read weights."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._tensors.items())


class _Client(HTTPVLLMWeightSyncClient):  # type: ignore[misc]
    """VLLM's client, whose requests go to every server of a group; a transfer is begun and ended outside.

    Args:
        group: the servers.
        offsets: by URL, the rank of a server's first worker in the NCCL group.
    """

    def __init__(self, group: Group, offsets: Mapping[str, int] | None = None) -> None:
        super().__init__("")
        self._group, self._offsets = group, offsets or {}

    def _post(self, path: str, json: dict[str, Any] | None = None) -> None:
        if path == "init_weight_transfer_engine" and json is not None:
            self._group.each(self._introducing(json["init_info"]))
        elif path == "update_weights" and json is not None:
            self._group.each(lambda server: server.update_weights(json["update_info"]))

    def _introducing(self, info: dict[str, Any]) -> Callable[[ControlPlane], None]:
        def introduce(server: ControlPlane) -> None:
            own = {"rank_offset": self._offsets[server.url]} if self._offsets else {}
            server.init_weight_transfer_engine({**info, **own})

        return introduce


def _together(action: Callable[[], None], group: Group) -> None:
    """Do what takes all servers of `group`; when one fails, or it does not end in time, all have failed.

    What hangs in NCCL cannot be ended, so it is left to a thread that the process does not wait for.
    """
    limit = max(server.timeout for server in group.standing)
    failed, done, left = len(group.failures), _in_background(action), Wait(limit)
    while not done.done() and len(group.failures) == failed and not left.over():
        wait([done], min(_LOOKS, left.pause))
    if done.done() and done.exception() is None and len(group.failures) == failed:
        return
    if len(group.failures) > failed:
        why = "lost with another's failure in one NCCL group"
    else:
        why = str(done.exception()) if done.done() else f"the NCCL group was not done within {limit:g} s"
    for server in list(group.standing):
        group.fail(server, ControlError(f"{server.url}: {why}"))


def _in_background(action: Callable[[], None]) -> Future[None]:
    future: Future[None] = Future()
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)  # which is a thread's own
            action()
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="exprl-transfer", daemon=True).start()
    return future


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _own_address(url: str) -> str:
    """This machine's address on the way to a server; nothing is sent."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname, parts.port or 80))
        return str(probe.getsockname()[0])


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
