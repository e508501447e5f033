"""Rollouts from a served model: vLLM's own server, and a fake one wherever something must go wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exprl.commands.evaluate import evaluate_model
from exprl.config import from_layers
from exprl.engines import Engine, Sampling, ServerEngine
from exprl.engines.ends import ends_of
from exprl.errors import EngineError, ModelError
from exprl.experiment import Experiment
from exprl.judges import SameModelJudge
from exprl.judges.backends.server import ServerBackend
from exprl.models.base import LanguageModel
from exprl.registry import ENGINES
from exprl.resources import Resources
from exprl.terminal.console import Console
from exprl.text.tokenization import decode_with_ends
from exprl.types import JudgeRequest, Prompt
from tests.vllm.fake_server import Answer, FakeServer
from tests.vllm.helpers import (
    chat_prompt,
    engine_logprobs,
    flat,
    gap,
    problem,
    prompt,
    sample,
    small_policy,
    tokens,
    trainer_logprobs,
)
from tests.vllm.serving import Server, serving
from tests.waiting import LONG, until


@pytest.fixture(scope="module")
def small() -> LanguageModel:
    return small_policy()


def engine_at(url: str, policy: LanguageModel, **options: Any) -> ServerEngine:
    settings = {"url": url, "model": "judge", "timeout": LONG, "retries": 0, **options}
    return ServerEngine(**settings, policy=policy)


def rollout_answer(ids: list[int], given: list[float] | None = None, *, reason: str = "stop", **changed: Any) -> Answer:
    given = [-0.5] * len(ids) if given is None else given
    choice = {
        "index": 0,
        "text": "ignored",
        "finish_reason": reason,
        "token_ids": ids,
        "logprobs": {"tokens": ["?"] * len(ids), "token_logprobs": given, "top_logprobs": None, "text_offset": []},
        **changed,
    }
    return Answer({"id": "c", "object": "text_completion", "created": 0, "model": "judge", "choices": [choice]})


def ids_of(policy: LanguageModel, text: str) -> list[int]:
    return list(policy.tokenizer(text, add_special_tokens=False)["input_ids"])


# ------------------------------------------------------------------ what is sent and read


def test_what_is_asked_and_what_becomes_of_it(small):
    ids = [*ids_of(small, "so 4"), small.tokenizer.eos_token_id]
    with FakeServer(lambda number, body: rollout_answer(ids, [-0.1, -0.2, -0.3, -0.4, -0.5])) as server:
        question = prompt(small.tokenizer, "<user>2 + 2<end><assistant>")
        settings = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_new_tokens": 9, "stop": ("zz",), "seed": 3}
        [[first, second]] = sample(engine_at(server.url, small), [question], n=2, **settings)
    assert first == second
    assert first.token_ids == tuple(ids)
    assert (first.text, first.token_ends) == decode_with_ends(small.tokenizer, ids)
    assert first.sampler_logprobs == (-0.1, -0.2, -0.3, -0.4, -0.5)
    assert first.finish_reason == "stop"
    one, other = server.bodies
    assert one.pop("seed") != other.pop("seed")
    assert one == other
    assert one["prompt"] == list(question.token_ids)
    expected = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_tokens": 9, "stop": ["zz"], "model": "judge"}
    assert {name: one[name] for name in expected} == expected
    assert one["return_token_ids"] is True
    assert one["logprobs"] == 0
    assert set(one["stop_token_ids"]) == set(ends_of(small.model, small.tokenizer).token_ids)


def test_rollouts_come_as_they_finish_and_requests_are_bounded(small):
    others_came = threading.Event()

    def answer(number: int, body: Any) -> Answer:
        if body["prompt"] == ids_of(small, "slow"):
            others_came.wait(LONG)
        return rollout_answer(ids_of(small, "ok"))

    order = []
    with FakeServer(answer) as server:
        prompts = [prompt(small.tokenizer, text) for text in ("slow", "a", "b", "c", "d", "e")]
        engine = engine_at(server.url, small, concurrency=3)
        for index, _ in engine.generate(prompts, Sampling(n=2, max_new_tokens=4)):
            order.append(index)
            if len(order) == 10:
                others_came.set()
    assert sorted(order) == sorted([*range(6), *range(6)])
    assert order[-2:] == [0, 0]
    assert server.most_at_once == 3


def test_whoever_stops_listening_stops_the_requests(small):
    release = threading.Event()

    def answer(number: int, body: Any) -> Answer:
        if number:
            release.wait(LONG)
        return rollout_answer(ids_of(small, "ok"))

    with FakeServer(answer) as server:
        engine = engine_at(server.url, small, concurrency=2)
        stream = engine.generate([prompt(small.tokenizer, "a")], Sampling(n=20, max_new_tokens=4))
        next(stream)
        until(lambda: len(server.bodies) == 3)
        stream.close()
        release.set()
        time.sleep(0.3)
        assert len(server.bodies) < 6, "those under way, and not all twenty"


# ------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer({"error": {"message": "no such model"}}, status=404), "no such model"),
        (Answer({"error": "busy"}, status=503), "503|busy"),
        (Answer(drop=True), "disconnected"),
        (Answer(b"<html>Please log in</html>", kind="text/html"), "no JSON but 'text/html'"),
        (Answer({"choices": []}), "no completion"),
        (rollout_answer([7, 8], token_ids=None), "gives no token ids with their log-probs"),
        (rollout_answer([7, 8], [-0.5]), "gives no token ids with their log-probs"),
        (rollout_answer([7, 8], logprobs=None), "gives no token ids with their log-probs"),
        (rollout_answer([7, 8], reason="abort"), "finish_reason 'abort'"),
    ],
)
def test_a_fault_ends_the_call_with_a_clear_error(small, answer, message):
    with FakeServer(lambda number, body: answer) as server:
        engine = engine_at(server.url, small)
        stream = engine.generate([prompt(small.tokenizer, "a", "problem 7")], Sampling(n=2, max_new_tokens=4))
        with pytest.raises(EngineError, match=message) as caught:
            list(stream)
    assert server.url in str(caught.value)


def test_passing_faults_are_retried(small):
    def answer(number: int, body: Any) -> Answer:
        return Answer({"error": "busy"}, status=503) if number < 2 else rollout_answer(ids_of(small, "ok"))

    with FakeServer(answer) as server:
        [[rollout]] = sample(engine_at(server.url, small, retries=3), [prompt(small.tokenizer, "a")], n=1)
    assert rollout.text == "ok"
    assert len(server.bodies) == 3


def test_a_slow_server_is_an_error_within_the_limits(small):
    release = threading.Event()

    def answer(number: int, body: Any) -> Answer:
        release.wait(LONG)
        return rollout_answer([7])

    with FakeServer(answer) as server:
        with pytest.raises(EngineError, match=r"no answer within 0\.3 s"):
            sample(engine_at(server.url, small, timeout=0.3), [prompt(small.tokenizer, "a")], n=2)
        release.set()


def test_what_is_given_is_checked_before_anything_is_sent(small):
    with FakeServer(lambda number, body: rollout_answer([7])) as server:
        engine = engine_at(server.url, small, context_length=10)
        with pytest.raises(TypeError, match="Prompt objects only, but got Problem"):
            engine.generate([problem("p")], Sampling(n=1))
        with pytest.raises(ValueError, match="temperature"):
            engine.generate([], Sampling(n=1, temperature=0))
        with pytest.raises(ModelError, match="has no tokens"):
            engine.generate([Prompt(problem_id="e", text="", token_ids=())], Sampling(n=1, max_new_tokens=1))
        with pytest.raises(ModelError, match=r"rollout.context_length. has a context of 10"):
            engine.generate([prompt(small.tokenizer, "abcd")], Sampling(n=1, max_new_tokens=7))
        assert server.bodies == []


def test_options(small):
    for wrong, message in (({"url": "x"}, "http"), ({"temperature": 0.0}, "temperature"), ({"timeout": 0}, "timeout")):
        with pytest.raises(ValueError, match=message):
            ServerEngine.Config(**{"url": "http://127.0.0.1:9/v1", "model": "m", **wrong})
    assert Engine.trains
    assert not ENGINES.get("server").trains
    config = ServerEngine.Config(url="http://127.0.0.1:9/v1", model="m")
    assert isinstance(ENGINES.get("server").from_config(config, Resources(policy=small)), ServerEngine)


# ------------------------------------------------------------------ vLLM's own server


@pytest.fixture(scope="module")
def served(forking_vllm: None, smollm2: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with serving(smollm2, folder, "--logprobs-mode", "processed_logprobs") as server:
        yield server


def test_rollouts_are_those_of_the_served_model(served, smollm2):
    engine = engine_at(served.url, smollm2)
    questions = [chat_prompt(smollm2.tokenizer, text) for text in ("What is 2 + 2?", "Name a river.")]
    settings = {"n": 3, "max_new_tokens": 24, "temperature": 0.8}
    groups = sample(engine, questions, **settings, seed=1)
    rollouts = flat(groups)
    assert len(rollouts) == 6
    assert gap(engine_logprobs(rollouts), trainer_logprobs(smollm2, rollouts, 0.8)) < 1e-3
    assert all(r.text == smollm2.tokenizer.decode(r.token_ids, skip_special_tokens=True) for r in rollouts)
    assert {r.finish_reason for r in rollouts} <= {"stop", "length"}
    assert all((r.finish_reason == "length") == (len(r) == 24) for r in rollouts if r.finish_reason == "length")
    assert [len(set(group)) for group in tokens(groups)] == [3, 3]
    assert tokens(sample(engine, questions, **settings, seed=1)) == tokens(groups)
    assert tokens(sample(engine, questions, **{**settings, "n": 2}, seed=1)) == [group[:2] for group in tokens(groups)]
    assert tokens(sample(engine, questions, **settings, seed=2)) != tokens(groups)


def test_stop_strings_stay_in_the_rollout(served, smollm2):
    engine = engine_at(served.url, smollm2)
    question = chat_prompt(smollm2.tokenizer, "What is 2 + 2?")
    [[whole]] = sample(engine, [question], n=1, max_new_tokens=24, top_k=1)
    stop = whole.text[10:14]
    [[cut]] = sample(engine, [question], n=1, max_new_tokens=24, top_k=1, stop=(stop,))
    assert cut.token_ids == whole.token_ids[: len(cut)]
    assert len(cut) < len(whole)
    assert stop in cut.text
    assert cut.finish_reason == "stop"


def test_constrained_rationales_from_a_server(served, smollm2):
    settings = {"url": served.url, "model": "judge", "structured_outputs": True}
    asked = ServerBackend(**settings, tokenizer=smollm2.tokenizer)
    options = {"weights": "frozen", "scoring": "rationale", "max_new_tokens": 48}
    requests = [JudgeRequest(problem=problem("a"), trace=f"2 + 3 is {k}.", view="rollout") for k in range(3)]
    free = SameModelJudge(**options, backend=asked).judge(requests)
    constrained = SameModelJudge(**options, constrained=True, backend=asked).judge(requests)
    assert any(judgement.status == "unparseable" for judgement in free)
    assert [judgement.status for judgement in constrained] == ["ok"] * 3


def test_exprl_evaluate_samples_from_it(served, smollm2, tmp_path: Path):
    smollm2.model.save_pretrained(tmp_path / "model")
    smollm2.tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"id": f"p{k}", "question": f"What is {k} + 1?", "reference": "Add.", "answer": f"{k + 1}"} for k in (1, 2)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    experiment = from_layers(
        Experiment,
        [
            {
                "model": {"name": "pretrained", "path": str(tmp_path / "model")},
                "rollout": {"name": "server", "url": served.url, "model": "judge", "max_new_tokens": 12},
                "evaluation": {
                    "source": {"name": "jsonl", "path": str(tmp_path / "p.jsonl")},
                    "samples_per_prompt": 2,
                    "k": [1],
                },
            }
        ],
    )
    with (tmp_path / "log.txt").open("w") as log:
        result = evaluate_model(experiment, checkpoint=None, output=None, console=Console(file=log, width=120))
    assert result.total == 4
    assert 0 < result.length <= 12
