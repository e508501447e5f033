"""The trainer's side of a transfer, against real HTTP servers that read the files they are told of, and fail."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from exprl.engines.transfer.adapters import AdapterTransfer
from exprl.engines.transfer.base import TransferError
from exprl.engines.transfer.buckets import Bucket, BucketError, in_buckets, read_bucket, write_bucket
from exprl.engines.transfer.control import ControlPlane
from exprl.engines.transfer.files import FileTransfer
from exprl.engines.transfer.folder import TransferFolder, check_owner
from exprl.engines.transfer.plugin import PLUGIN, register
from exprl.errors import EngineError, PathError
from tests.control_server import ControlServer, Gone, control_servers
from tests.waiting import LONG


def some_weights(count: int = 5) -> dict[str, Tensor]:
    return {f"layers.{place}.weight": torch.full((50, 10), float(place)) for place in range(count)}


class World:
    """Two servers that load what they are told of, and a trainer."""

    def __init__(self, servers: list[ControlServer], folder: Path) -> None:
        self.servers, self.folder = servers, folder
        self.loaded: list[dict[str, Tensor]] = [{} for _ in servers]
        for server, loaded in zip(servers, self.loaded, strict=True):
            server.faults["/update_weights"] = self._loading(loaded)
        self.transfer = FileTransfer(folder=folder, bucket_bytes=4000)
        self.controls = [ControlPlane(server.url, timeout=LONG) for server in servers]

    def send(self, version: int, weights: dict[str, Tensor] | None = None) -> None:
        self.transfer.send((some_weights() if weights is None else weights).items(), self.controls, version)

    def hurry(self, which: int, path: str) -> None:
        """It has 0.3 s for this call alone: what is well must not need luck on a busy machine."""
        ask = self.controls[which]._ask

        def hurried(method: str, route: str, body: Any = None, *, limit: float | None = None) -> Any:
            return ask(method, route, body, limit=0.3 if route.startswith(path) else limit)

        self.controls[which]._ask = hurried  # type: ignore[method-assign]

    def fault(self, which: int, path: str, fault: Callable[[Any], Any], *, call: int = 0) -> None:
        """`fault` happens at the `call`-th time."""
        usual, calls = self.servers[which].faults.get(path, lambda body: None), iter(range(10**6))
        self.servers[which].faults[path] = lambda body: _either(fault, usual, next(calls) == call, body)

    def _loading(self, loaded: dict[str, Tensor]) -> Callable[[Any], None]:
        def load(body: Any) -> None:
            info = body["update_info"]
            if info:
                bucket = Bucket(file=info["file"], size=info["size"], digest=info["digest"])
                loaded.update(read_bucket(self.transfer._own_folder(), bucket))

        return load


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with control_servers(2) as servers:
        world = World(servers, tmp_path)
        world.transfer.connect(world.controls)
        for server in servers:
            server.calls.clear()
        yield world
        world.transfer.close()
        assert not list(tmp_path.iterdir())


def _either(fault: Callable[[Any], Any], usual: Callable[[Any], Any], now: bool, body: Any) -> Any:
    """A fault that answers nothing happens before the usual."""
    found = fault(body) if now else None
    return found if found is not None else usual(body)


def gone(body: Any) -> None:
    raise Gone


def hang(body: Any) -> None:
    """Longer than any test waits: what comes of it nobody hears."""
    threading.Event().wait()


def refuse(body: Any) -> tuple[int, Any]:
    return 500, {"error": {"message": "out of memory"}}


# ------------------------------------------------------------------ whole


def test_every_server_has_all_weights_in_bounded_pieces(world):
    world.send(3)
    for server, control, loaded in zip(world.servers, world.controls, world.loaded, strict=True):
        assert server.paths() == [
            "/pause?mode=abort",
            "/update_weight_version",
            "/start_weight_update",
            *["/update_weights"] * 3,
            "/finish_weight_update",
            "/reset_prefix_cache",
            "/resume",
        ]
        infos = [body["update_info"] for path, body in server.calls if path == "/update_weights"]
        assert [(info["index"], info["last"]) for info in infos] == [(0, False), (1, False), (2, True)]
        assert all(info["version"] == world.transfer.label(3) for info in infos)
        assert server.version == control.version() == world.transfer.label(3)
        assert not server.paused
        assert loaded.keys() == some_weights().keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in some_weights().items())


def test_at_most_two_buckets_lie_in_the_folder_whatever_the_number_of_servers(world):
    seen = []

    def look(body: Any) -> None:
        time.sleep(0.05)
        seen.append(len(list(world.transfer._own_folder().glob("*.safetensors"))))

    for which in range(2):
        for call in range(5):
            world.fault(which, "/update_weights", look, call=call)
    world.send(1, some_weights(count=9))
    assert 1 <= max(seen) <= 2
    assert not list(world.transfer._own_folder().glob("*.safetensors"))


def test_versions_of_two_trainers_are_told_apart(world):
    world.send(1)
    other = FileTransfer(folder=world.folder)
    assert world.controls[0].version() != other.label(1)


def test_weights_are_made_when_it_is_their_turn(world):
    """A model is never there twice: at most two buckets of two and what is in the making wait to be loaded."""
    waiting = []

    def weights() -> Iterator[tuple[str, Tensor]]:
        for place, pair in enumerate(some_weights(count=15).items()):
            waiting.append(place - len(world.loaded[0]))
            yield pair

    for call in range(8):
        world.fault(0, "/update_weights", lambda body: time.sleep(0.05), call=call)
    world.transfer.send(weights(), world.controls, 1)
    assert max(waiting) <= 6


def test_another_rank_gathers_and_says_nothing(world):
    passed = []
    other = FileTransfer(folder=world.folder, rank=1)
    other.connect(world.controls)
    other.send((passed.append(name) or (name, tensor) for name, tensor in some_weights().items()), world.controls, 1)
    assert passed == list(some_weights())
    assert not world.servers[0].calls


# ------------------------------------------------------------------ servers that fail

pytestmark = pytest.mark.usefixtures("forking")

FAULTS = ["/pause", "/update_weight_version", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]


@pytest.mark.parametrize("path", [*FAULTS, "/weight_info", "/resume"])
@pytest.mark.parametrize("fault", [gone, hang, refuse])
def test_a_server_that_fails_is_named_and_the_other_has_the_weights(world, path, fault):
    world.hurry(1, path)
    world.fault(1, path, fault)
    with pytest.raises(
        TransferError, match=rf"1 of 2 vLLM servers did not take .*/2: {world.servers[1].url}"
    ) as caught:
        world.send(2)
    assert caught.value.servers == (world.controls[1],)
    assert world.servers[0].version == world.transfer.label(2)
    assert not world.servers[0].paused
    assert world.loaded[0].keys() == some_weights().keys()
    if path not in ("/pause", "/resume"):
        assert world.servers[1].paused
    if path in ("/update_weights", "/finish_weight_update"):
        assert world.servers[1].version != world.transfer.label(2) or path == "/finish_weight_update"


def test_one_that_dies_in_the_middle_is_told_no_more(world):
    world.fault(1, "/update_weights", gone, call=1)
    with pytest.raises(TransferError) as caught:
        world.send(1)
    assert caught.value.servers == (world.controls[1],)
    assert world.servers[1].paths().count("/update_weights") == 2
    assert world.servers[1].version == f"{world.transfer.label(1)}-incomplete"
    assert world.servers[0].version == world.transfer.label(1)


def test_none_left_ends_it_and_other_ranks_are_not_left_alone(world):
    passed = []
    for which in range(2):
        world.fault(which, "/update_weights", refuse)
    with pytest.raises(TransferError, match="2 of 2 vLLM servers") as caught:
        world.transfer.send(
            (passed.append(name) or (name, tensor) for name, tensor in some_weights().items()), world.controls, 1
        )
    assert set(caught.value.servers) == set(world.controls)
    assert passed == list(some_weights())  # gathering them is a collective


def test_a_server_that_forgets_its_version_is_refused(world):
    world.fault(0, "/weight_info", lambda body: (200, {"weight_version": "default"}), call=1)
    with pytest.raises(TransferError, match="names its weights 'default'"):
        world.send(1)
    assert world.servers[0].paused


def test_a_transfer_that_another_trainer_left_is_ended(world):
    world.servers[0].active, world.servers[0].version = True, "other/3-incomplete"
    world.send(1)
    assert [server.version for server in world.servers] == [world.transfer.label(1)] * 2


def test_a_server_that_refuses_to_be_introduced_is_named(world):
    world.fault(1, "/init_weight_transfer_engine", lambda body: (400, {"error": {"message": "no such folder"}}))
    with pytest.raises(TransferError, match=r"cannot take weights from this trainer.*no such folder") as caught:
        world.transfer.connect(world.controls)
    assert caught.value.servers == (world.controls[1],)


# ------------------------------------------------------------------ weights that are wrong


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"layers.0.weight": None}, r"layers.1.weight \[50, 10\] float32 comes where .* had layers.0.weight"),
        ({"layers.4.weight": None}, r"the end comes where .* had layers.4.weight"),
        ({"layers.2.weight": torch.zeros(10, 50)}, r"layers.2.weight \[10, 50\] float32 comes where .*\[50, 10\]"),
        ({"layers.2.weight": torch.zeros(50, 10).double()}, r"layers.2.weight \[50, 10\] float64 comes where"),
        ({"head": torch.zeros(1)}, r"head \[1\] float32 comes where .* had its end"),
    ],
)
def test_tensors_must_be_those_of_the_transfer_before(world, spoilt, message):
    world.send(1)
    weights = {name: tensor for name, tensor in {**some_weights(), **spoilt}.items() if tensor is not None}
    with pytest.raises(EngineError, match=message):
        world.send(2, weights)
    assert all(server.paused and server.version.endswith("/2-incomplete") for server in world.servers)
    world.send(3)
    assert [server.version for server in world.servers] == [world.transfer.label(3)] * 2


def test_a_trainer_that_fails_leaves_servers_paused_and_no_file(world):
    def weights() -> Iterator[tuple[str, Tensor]]:
        yield from list(some_weights().items())[:3]
        raise RuntimeError("a rank is gone")

    with pytest.raises(RuntimeError, match="a rank is gone"):
        world.transfer.send(weights(), world.controls, 1)
    assert all(server.paused and server.version.endswith("-incomplete") for server in world.servers)
    assert not list(world.transfer._own_folder().glob("*.safetensors"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(PathError, match=rf"{tmp_path}/none: No such file.*Name another folder"):
        FileTransfer(folder=tmp_path / "none").connect([ControlPlane("http://127.0.0.1:9", timeout=1)])


def test_a_bucket_that_cannot_be_written_is_named_and_servers_stay_paused(world, monkeypatch):
    def full(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("exprl.engines.transfer.buckets.save_file", full)
    with pytest.raises(
        PathError, match=r"No space left on device.*lower bucket_bytes \(4000\), or name another folder"
    ):
        world.send(1)
    assert all(server.paused and server.version.endswith("-incomplete") for server in world.servers)
    assert not list(world.transfer._own_folder().glob("*.safetensors"))


# ------------------------------------------------------------------ buckets and folders


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    whole = torch.randn(6, 4)
    return {
        "a": whole,
        "alias": whole,
        "half": whole[3:],
        "across": whole.T,
        "bfloat16": torch.randn(3).bfloat16(),
        "none": torch.zeros(0, 3),
        "number": torch.tensor(3.0),
    }


def test_a_bucket_is_read_as_it_was_written(tmp_path, tensors):
    bucket = write_bucket(tensors, tmp_path / "b")
    found = read_bucket(tmp_path, bucket)
    (tmp_path / "b").unlink()  # what was read stays
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: os.truncate(path, path.stat().st_size - 1), "cut short"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "stale or foreign"),
        (lambda path: write_bucket({"a": torch.zeros(1)}, path), "cut short or foreign"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_bucket_that_is_not_the_announced_one_is_refused(tmp_path, tensors, spoil, message):
    bucket = write_bucket(tensors, tmp_path / "b")
    spoil(tmp_path / "b")
    with pytest.raises(BucketError, match=message):
        read_bucket(tmp_path, bucket)


def test_a_bucket_is_read_from_the_trainers_folder_alone(tmp_path, tensors):
    (tmp_path / "mine").mkdir()
    bucket = write_bucket(tensors, tmp_path / "b")
    with pytest.raises(BucketError, match="No such file"):
        read_bucket(tmp_path / "mine", Bucket(file="../b", size=bucket.size, digest=bucket.digest))


def test_no_tensor_is_lost_between_buckets():
    weights = [(str(place), torch.zeros(place % 7)) for place in range(50)]
    buckets = [bucket for bucket, _ in in_buckets(weights, limit=40)]
    assert [name for bucket in buckets for name in bucket] == [name for name, _ in weights]
    assert all(sum(tensor.nbytes for tensor in bucket.values()) <= 40 for bucket in buckets)


def test_a_folder_is_its_users_alone_and_ends_with_its_trainer(tmp_path):
    folder = TransferFolder(tmp_path, "mine")
    assert folder.path.stat().st_mode & 0o077 == 0
    check_owner(folder.path, "mine")
    with pytest.raises(ValueError, match="another trainer's"):
        check_owner(folder.path, "yours")
    folder.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="does not see"):
        check_owner(folder.path, "mine")


# ------------------------------------------------------------------ adapters


@pytest.fixture
def adapters(world: World) -> Iterator[AdapterTransfer]:
    found = AdapterTransfer(world.transfer, folder=world.folder)
    yield found
    found.close()


def send_adapter(adapters: AdapterTransfer, world: World, version: int) -> None:
    adapters.send({"layer.lora_A.weight": torch.full((2, 3), float(version))}, {"r": 2}, world.controls, version)


def test_each_version_of_an_adapter_has_a_name_and_takes_the_place_of_the_one_before(world, adapters):
    for version in (1, 2, 2, 3):
        send_adapter(adapters, world, version)
        for server in world.servers:
            assert server.adapters == {adapters.model(version)}
            assert server.version == adapters.model(version)
        loads = [body for path, body in server.calls if path.endswith("/load_lora_adapter")]
        folder = Path(loads[-1]["lora_path"])
        assert load_file(folder / "adapter_model.safetensors")["layer.lora_A.weight"][0, 0] == version
        assert json.loads((folder / "adapter_config.json").read_text()) == {"r": 2}
        assert [one for one in folder.parent.iterdir() if one.is_dir()] == [folder]


@pytest.mark.parametrize("fault", [gone, hang, refuse])
def test_a_server_that_does_not_take_an_adapter_is_named_and_has_no_new_version(world, adapters, fault):
    send_adapter(adapters, world, 1)
    world.hurry(1, "/v1/load_lora_adapter")
    world.fault(1, "/v1/load_lora_adapter", fault)
    with pytest.raises(TransferError, match="1 of 2 vLLM servers did not take the adapter") as caught:
        send_adapter(adapters, world, 2)
    assert caught.value.servers == (world.controls[1],)
    assert [server.version for server in world.servers] == [adapters.model(2), adapters.model(1)]


def test_a_server_that_was_started_again_has_no_adapter_to_give_up(world, adapters):
    send_adapter(adapters, world, 1)
    world.servers[1].adapters.clear()
    send_adapter(adapters, world, 2)
    assert world.servers[1].adapters == {adapters.model(2)}


def test_adapters_need_servers_with_room(world, adapters):
    assert adapters.server_arguments({"r": 6}) == [
        "--enable-lora", "--max-loras", "2", "--max-cpu-loras", "2", "--max-lora-rank", "8",
    ]  # fmt: skip
    assert adapters.environment() == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


# ------------------------------------------------------------------ the plugin


def test_the_package_has_the_entry_point_that_vllm_looks_for():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {PLUGIN: f"{register.__module__}:{register.__name__}"}


def test_the_plugin_is_silent_where_vllm_has_no_such_thing(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.factory", None)
    register()


def test_the_plugin_is_among_those_that_vllm_may_load(monkeypatch, tmp_path):
    transfer = FileTransfer(folder=tmp_path)
    assert transfer.environment() == {"VLLM_SERVER_DEV_MODE": "1"}
    monkeypatch.setenv("VLLM_PLUGINS", "lora_resolver")
    assert transfer.environment()["VLLM_PLUGINS"] == "lora_resolver,exprl"


# ------------------------------------------------------------------ sharded weights


@pytest.mark.slow
def test_two_ranks_gather_and_one_sends_whole_weights_also_to_a_server_that_fails(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.transfer_rank"]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **meeting, "RANK": rank}, stdout=subprocess.PIPE) for rank in "01"
    ]
    first, second = (json.loads(rank.communicate(timeout=LONG)[0]) for rank in ranks)
    assert first == {"rank": 0, "same": True, "failed": True, "sharded": True, "ranks": 2.0}
    assert second == {"rank": 1, "sharded": True, "ranks": 2.0}
