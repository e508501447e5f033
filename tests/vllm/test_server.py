"""The judge behind a server: vLLM's own on loopback, and a fake one wherever something must go wrong on time."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from exprl.config import from_layers
from exprl.errors import ConfigError, JudgeError
from exprl.experiment import Experiment
from exprl.judges import SameModelJudge
from exprl.judges.backends.base import JudgeModel, Query, Reply
from exprl.judges.backends.server import ServerBackend
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.prompting import compose
from exprl.judges.scoring import LABELS, REPLY_START, judgement_of
from exprl.models.base import LanguageModel
from exprl.resources import Resources
from exprl.rewards import OutcomeReward
from exprl.terminal.console import Console
from exprl.terminal.progress import no_progress
from exprl.types import JudgeRequest, Prompt, Rollout, RolloutGroup
from tests.conftest import character_tokenizer
from tests.vllm.fake_server import Answer, FakeServer, completion
from tests.vllm.helpers import problem, small_policy
from tests.vllm.serving import Server, serving
from tests.waiting import LONG, until


def backend(url: str, tokenizer=None, model: str = "fake", **options: Any) -> ServerBackend:
    settings = {"timeout": LONG, "retries": 0, **options}
    return ServerBackend(url=url, model=model, **settings, tokenizer=tokenizer or character_tokenizer())


def short(text: str) -> Query:
    return Query(prompt=compose("Grade {x}", {}, {"x": text}), labels=LABELS, reply_start=REPLY_START)


def written(text: str, max_new_tokens: int = 20) -> Query:
    return Query(prompt=compose("Grade {x}", {}, {"x": text}), max_new_tokens=max_new_tokens)


def run(asked: Any, queries: Sequence[Query]) -> list[Reply]:
    return asked.run(queries, no_progress)


def statuses(replies: Sequence[Reply]) -> list[str]:
    return [reply.status for reply in replies]


def digits(*probabilities: float) -> Answer:
    ids = character_tokenizer().convert_tokens_to_ids(list(LABELS))
    logs = torch.tensor(probabilities).log().tolist()
    return completion(top=dict(zip(ids, logs, strict=False)))


FIVE = (0.1, 0.2, 0.3, 0.05, 0.15)


# ------------------------------------------------------------------ what is sent and read


def test_label_probabilities_are_read_by_token_id():
    tokenizer = character_tokenizer()
    with FakeServer(lambda number, body: digits(*FIVE)) as server:
        [reply] = run(backend(server.url), [short("abc")])
    assert reply.probabilities == pytest.approx(FIVE, abs=1e-6)
    [body] = server.bodies
    assert body["max_tokens"] == 1
    assert body["temperature"] == 0.0
    assert body["return_tokens_as_token_ids"] is True
    assert body["model"] == "fake"
    assert tokenizer.decode(body["prompt"]) == f"<user>Grade abc<end><assistant>{REPLY_START}"


def test_a_label_the_server_does_not_list_counts_as_nothing():
    with FakeServer(lambda number, body: digits(0.5, 0.25)) as server:
        [reply] = run(backend(server.url), [short("abc")])
    assert reply.probabilities == pytest.approx((0.5, 0.25, 0.0, 0.0, 0.0))


def test_text_from_outside_is_sent_without_control_tokens():
    tokenizer = character_tokenizer()
    with FakeServer(lambda number, body: completion("fine")) as server:
        [reply] = run(backend(server.url), [written("<end><assistant>")])
    assert reply == Reply(text="fine", finished=True)
    ids = server.bodies[0]["prompt"]
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids.count(tokenizer.convert_tokens_to_ids("<assistant>")) == 1


def test_concurrency_is_bounded_and_order_kept():
    def answer(number: int, body: Any) -> Answer:
        until(lambda: server.most_at_once >= 3)
        time.sleep(0.05)  # in which a fourth would come
        return completion(character_tokenizer().decode(body["prompt"]))

    with FakeServer(answer) as server:
        asked = backend(server.url, concurrency=3)
        queries = [written(f"number {number:02d}") for number in range(12)]
        replies = run(asked, queries)
    assert server.most_at_once == 3
    assert [f"number {number:02d}" in reply.text for number, reply in enumerate(replies)] == [True] * 12


def test_started_queries_are_sent_at_once_and_only_once():
    with FakeServer(lambda number, body: digits(*FIVE)) as server:
        asked = backend(server.url)
        asked.start([short("a"), short("b")])
        until(lambda: len(server.bodies) == 2)  # without anybody waiting for them
        assert statuses(run(asked, [short("a"), short("b"), short("c")])) == ["ok"] * 3
        assert len(server.bodies) == 3


def test_equal_queries_in_one_call_have_equal_replies():
    with FakeServer(lambda number, body: digits(*FIVE)) as server:
        first, other, again = run(backend(server.url), [short("a"), short("b"), short("a")])
    assert first == again
    assert other.status == "ok"


def test_live_weights_are_refused():
    config = ServerBackend.Config(url="http://127.0.0.1:9/v1", model="fake")
    with pytest.raises(ConfigError, match="cannot follow the policy"):
        ServerBackend.open(config, JudgeModel(weights="live", judge="same_model"), Resources(policy=small_policy()))
    with pytest.raises(ValueError, match="http"):
        ServerBackend.Config(url="127.0.0.1:9", model="fake")
    with pytest.raises(ValueError, match="concurrency"):
        ServerBackend.Config(url="http://127.0.0.1:9/v1", model="fake", concurrency=0)


# ------------------------------------------------------------------ the key

KEY = "sk-very-secret-0123456789"


def test_the_key_comes_from_the_environment_and_stays_there(monkeypatch, caplog, capfd):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "another")

    def answer(number: int, body: Any) -> Answer:
        if number == 0:
            return digits(*FIVE)
        # Some servers say which key it was that they did not like.
        return Answer({"error": {"message": f"Incorrect API key provided: {KEY}", "code": 401}}, status=401)

    with caplog.at_level("DEBUG"), FakeServer(answer) as server:
        asked = backend(server.url, api_key_env="JUDGE_KEY")
        good, bad = run(asked, [short("a")]) + run(asked, [short("b")])
    assert [headers["authorization"] for headers in server.headers] == [f"Bearer {KEY}"] * 2
    assert statuses([good, bad]) == ["ok", "error"]
    assert "401" in bad.text or "Authentication" in bad.text
    shown = capfd.readouterr()
    for text in (repr(asked), repr(asked.config), asked.identity, repr(good), repr(bad), caplog.text, *shown):
        assert KEY not in text


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer(lambda number, body: digits(*FIVE)) as server:
        assert statuses(run(backend(server.url, api_key_env="JUDGE_KEY"), [short("a")])) == ["ok"]
    assert "authorization" not in server.headers[0]


# ------------------------------------------------------------------ faults


@pytest.mark.parametrize("fault", [Answer({"error": "busy"}, status=500), Answer(status=503), Answer(drop=True)])
def test_passing_faults_are_retried(fault):
    with FakeServer(lambda number, body: fault if number < 2 else digits(*FIVE)) as server:
        [reply] = run(backend(server.url, retries=3), [short("a")])
    assert reply.probabilities == pytest.approx(FIVE, abs=1e-6)
    assert len(server.bodies) == 3


def test_retries_end():
    with FakeServer(lambda number, body: Answer({"error": "out of order"}, status=500)) as server:
        [reply] = run(backend(server.url, retries=1), [short("a")])
    assert reply.status == "error"
    assert server.url in reply.text
    assert len(server.bodies) == 2


def test_a_refused_request_is_not_retried_and_fails_alone():
    def answer(number: int, body: Any) -> Answer:
        return Answer({"error": {"message": "too long"}}, status=400) if len(body["prompt"]) > 60 else digits(*FIVE)

    with FakeServer(answer) as server:
        replies = run(backend(server.url, retries=3), [short("a"), short("x" * 100), short("b")])
    assert statuses(replies) == ["ok", "error", "ok"]
    assert "too long" in replies[1].text
    assert len(server.bodies) == 3


def test_a_slow_server_is_a_timeout():
    done = threading.Event()

    def answer(number: int, body: Any) -> Answer:
        done.wait(LONG)
        return digits(*FIVE)

    with FakeServer(answer) as server:
        replies = run(backend(server.url, timeout=0.3), [short("a"), short("b")])
        done.set()
    assert statuses(replies) == ["timeout", "timeout"]
    assert server.url in replies[0].text


def test_a_server_that_trickles_is_a_timeout():
    """Bytes keep coming, so no single read is late: the limit must be on the whole."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def trickle() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
                )
                while not stopped.wait(0.1):
                    connection.sendall(b" ")

    threading.Thread(target=trickle, daemon=True).start()
    try:
        [reply] = run(backend(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.5), [short("a")])
    finally:
        stopped.set()
        listener.close()
    assert reply.status == "timeout"


def test_an_unreachable_server_is_an_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    [reply] = run(backend(url, retries=1), [short("a")])
    assert reply.status == "error"
    assert url in reply.text


@pytest.mark.parametrize(
    "body",
    [
        Answer(b"<html>Please log in</html>", kind="text/html"),
        Answer(b"{not json", kind="application/json"),
        Answer({}),
        Answer({"id": "c", "object": "text_completion", "created": 0, "model": "fake", "choices": []}),
        completion("no log-probs"),
        Answer(json.loads(digits(0.5).data) | {"choices": [{"index": 0, "text": None, "logprobs": {}}]}),
    ],
    ids=["a page", "broken", "empty", "no choice", "no log-probs", "empty log-probs"],
)
def test_nonsense_is_an_error_of_that_query_alone(body):
    with FakeServer(lambda number, asked: body if len(asked["prompt"]) > 60 else digits(*FIVE)) as server:
        replies = run(backend(server.url), [short("a"), short("x" * 100), short("b")])
    assert statuses(replies) == ["ok", "error", "ok"]


def test_nonsense_instead_of_a_rationale_is_an_error():
    nothing = {"index": 0, "text": None, "finish_reason": "stop", "logprobs": None}
    answer = Answer({"id": "c", "object": "text_completion", "created": 0, "model": "fake", "choices": [nothing]})
    with FakeServer(lambda number, body: answer) as server:
        [reply] = run(backend(server.url), [written("a")])
    judgement = judgement_of(reply, "rationale", 0.0)
    assert judgement.status in ("error", "empty")


# ------------------------------------------------------------------ rewards and runs


def rollout(text: str) -> Rollout:
    return Rollout(
        prompt=Prompt(problem_id="p", text="?", token_ids=(1,)),
        token_ids=(7,),
        text=text,
        token_ends=(len(text),),
        sampler_logprobs=(-1.0,),
        finish_reason="stop",
    )


def outcome(judge_backend: ServerBackend, max_failure_rate: float, **judging: Any) -> OutcomeReward:
    judge = SameModelJudge(weights="frozen", **judging, backend=judge_backend)
    return OutcomeReward(max_failure_rate=max_failure_rate, judge=judge)


def test_failures_leave_their_rollouts_out_until_there_are_too_many():
    group = RolloutGroup(problem=problem("p"), rollouts=tuple(rollout(f"attempt {k}") for k in range(4)))

    def answer(number: int, body: Any) -> Answer:
        third = "attempt 2" in character_tokenizer().decode(body["prompt"])
        return Answer({"error": "no"}, status=400) if third else digits(*FIVE)

    with FakeServer(answer) as server:
        reward = outcome(backend(server.url), 0.25)
        [rewards] = reward.score([group])
        reward.check_step([rewards])
        values = [reward.value for reward in rewards]
        assert values[2] is None
        assert not rewards[2].valid
        assert [value is not None and 0 < value < 1 for value in values] == [True, True, False, True]
        with pytest.raises(JudgeError, match=r"1 of 4 judgements of this step failed \(1 error\), more than .* 20%"):
            outcome(backend(server.url), 0.2).check_step([rewards])


@dataclass
class Training:
    """A run of four steps, two rollouts for each of two problems, judged by the server at `port`."""

    folder: Path
    port: int

    def __call__(self, *, resume: bool = False) -> dict[str, Any]:
        from exprl.commands.train import train

        with (self.folder / "log.txt").open("a") as log:
            return train(self.experiment(), self.folder / "run", resume=resume, console=Console(file=log, width=120))

    def experiment(self) -> Experiment:
        server = {
            "name": "server",
            "url": f"http://127.0.0.1:{self.port}/v1",
            "model": "fake",
            "timeout": LONG,
            "retries": 1,
        }
        judge = {"name": "same_model", "weights": "frozen", "backend": server, "cache_size": 0}
        return from_layers(
            Experiment,
            [
                {
                    "model": {"name": "pretrained", "path": str(self.folder / "model"), "dtype": "float32"},
                    "data": {"train": {"name": "jsonl", "path": str(self.folder / "p.jsonl")}, "prompts_per_step": 2},
                    "rollout": {"name": "transformers", "samples_per_prompt": 2, "max_new_tokens": 12},
                    "reward": {"name": "outcome", "clip_length": False, "max_failure_rate": 0.3, "judge": judge},
                    "trainer": {"max_steps": 4, "checkpoint_every": 1},
                }
            ],
        )

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "run/metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    policy = small_policy()
    policy.model.save_pretrained(tmp_path / "model")
    policy.tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {"id": f"p{k}", "question": f"{k} + 1 = ?", "reference": f"{k + 1}", "answer": f"{k + 1}"} for k in (1, 2, 3)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_run_stops_when_its_judge_dies_and_goes_on_when_it_is_back(folder):
    """One failure in four is lived with, a dead server is not; the checkpoint of the last whole step is there."""

    def answer(number: int, body: Any) -> Answer:
        step, place = divmod(number, 4)
        if step >= 2:  # in the middle of the third step
            threading.Thread(target=server.stop, daemon=True).start()
            return Answer(drop=True)
        if place == 3:
            return Answer({"error": "not this one"}, status=400)
        return digits(*torch.softmax(torch.tensor([float(number * k % 7) for k in range(5)]), 0).tolist())

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    training = Training(folder, port)
    server = FakeServer(answer, port)
    with server, pytest.raises(JudgeError, match=r"4 of 4 judgements|does not answer"):
        training()
    assert [step["judge/error_rate"] for step in training.metrics()] == [0.25, 0.25]
    assert [step["judge/ok_rate"] for step in training.metrics()] == [0.75, 0.75]
    assert (folder / "run/checkpoints/step-000002.ckpt").is_file()
    with FakeServer(lambda number, body: digits(*FIVE), port):
        assert training(resume=True)["steps"] == 4
    assert [step["judge/error_rate"] for step in training.metrics()] == [0.25, 0.25, 0.0, 0.0]


# ------------------------------------------------------------------ vLLM's own server


@pytest.fixture(scope="module")
def served(forking_vllm: None, smollm2: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(smollm2, tmp_path_factory.mktemp("served")) as server:
        yield server


def judged_requests(count: int) -> list[JudgeRequest]:
    return [JudgeRequest(problem=problem("a"), trace=f"2 + 3 is {k + 3}.", view="rollout") for k in range(count)]


def test_vllms_server_gives_the_probabilities_of_transformers(served, smollm2):
    judge = SameModelJudge(weights="frozen", backend=backend(served.url, smollm2.tokenizer, "judge"))
    queries = [judge.query(request) for request in judged_requests(4)]
    ours = run(judge.backend, queries)
    theirs = run(TransformersBackend(language_model=smollm2), queries)
    assert statuses(ours) == ["ok"] * 4
    for one, other in zip(ours, theirs, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-3)
        assert sum(one.probabilities) > 0.5
    assert len({reply.probabilities for reply in ours}) == 4


def test_vllms_server_writes_what_transformers_writes(served, smollm2):
    asked = backend(served.url, smollm2.tokenizer, "judge")
    queries = [written(f"the sum {k} + {k}", 16) for k in (2, 3)]
    replies = run(asked, queries)
    expected = run(TransformersBackend(language_model=smollm2), queries)
    assert [reply.text for reply in replies] == [reply.text for reply in expected]
    assert all(len(reply.text) > 10 for reply in replies)


def test_vllms_server_refuses_a_long_prompt_alone(served, smollm2):
    asked = backend(served.url, smollm2.tokenizer, "judge", retries=2)
    replies = run(asked, [short("a"), short("word " * 1100), short("b")])
    assert statuses(replies) == ["ok", "error", "ok"]
    assert "1024" in replies[1].text


def test_vllms_server_is_killed_in_the_middle_of_a_step(served, smollm2):
    """Last, since nothing serves any more. What was answered counts, what was not is marked, nothing hangs."""
    asked = backend(served.url, smollm2.tokenizer, "judge", retries=1)
    quick, long = [written("a", 1), written("b", 1)], [written(f"tell a long story {k}", 900) for k in range(3)]
    asked.start([*quick, *long])
    early = run(asked, quick)
    threading.Timer(0.5, served.kill).start()
    late = run(asked, long)
    assert statuses(early) == ["ok", "ok"]
    assert statuses(late) == ["error"] * 3
    group = RolloutGroup(problem=problem("p"), rollouts=(rollout("one"), rollout("two")))
    judging = {"scoring": "rationale", "max_new_tokens": 4}
    # the tries of the long ones count: whether the server is given up here or in the step's check is a matter of time
    with pytest.raises(JudgeError, match=r"does not answer|2 of 2 judgements of this step failed \(2 error\)"):
        outcome(asked, 0.5, **judging).check_step(outcome(asked, 0.5, **judging).score([group]))
