"""A judge behind a server that answers anything at all, or nothing: a loopback server that is ill on purpose."""

from __future__ import annotations

import gzip
import json
import math
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from exprl import config as configuration
from exprl.config import from_layers
from exprl.engines.completions import MalformedAnswerError, read_completion
from exprl.engines.http import CompletionServer, RequestFailedError, ServerOptions
from exprl.engines.urls import split_credentials
from exprl.errors import ConfigError, JudgeError, RunDirectoryError
from exprl.experiment import Experiment
from exprl.judges.backends.base import Query, Reply
from exprl.judges.backends.server import ServerBackend
from exprl.judges.prompting import compose
from exprl.judges.scoring import judgement_of
from exprl.judges.verdict import LABELS, REPLY_START
from exprl.runs.directory import RunDirectory
from exprl.terminal.progress import no_progress
from exprl.types import LONGEST_RATIONALE
from tests.conftest import character_tokenizer
from tests.vllm.fake_server import Answer, FakeServer, completion
from tests.waiting import LONG, until

FIVE = (0.1, 0.2, 0.3, 0.05, 0.15)


def backend(url: str, **options: Any) -> ServerBackend:
    settings = {"timeout": LONG, "retries": 0, **options}
    return ServerBackend(url=url, model="fake", **settings, tokenizer=character_tokenizer())


def short(text: str) -> Query:
    return Query(prompt=compose("Grade {x}", {}, {"x": text}), labels=LABELS, reply_start=REPLY_START)


def written(text: str) -> Query:
    return Query(prompt=compose("Grade {x}", {}, {"x": text}), max_new_tokens=20)


def run(asked: ServerBackend, queries: Sequence[Query]) -> list[Reply]:
    return asked.run(queries, no_progress)


def label_ids() -> list[int]:
    return character_tokenizer().convert_tokens_to_ids(list(LABELS))


def digits(*probabilities: float) -> Answer:
    return completion(top={token: math.log(p) for token, p in zip(label_ids(), probabilities, strict=False)})


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def choice(**fields: Any) -> dict[str, Any]:
    whole = {"index": 0, "text": "Level: 4", "finish_reason": "stop", "logprobs": {"top_logprobs": [good_top()]}}
    return {"choices": [{**whole, **fields}]}


def good_top(**changed: Any) -> dict[str, Any]:
    top: dict[str, Any] = {f"token_id:{i}": math.log(p) for i, p in zip(label_ids(), FIVE, strict=True)}
    return {**top, **changed}


def with_logprob(value: str) -> bytes:
    """An answer in which one log-prob is spelled as `value`, JSON or not."""
    text = json.dumps(choice(logprobs={"top_logprobs": [good_top(**{f"token_id:{label_ids()[4]}": "HERE"})]}))
    return text.replace('"HERE"', value).encode()


MALFORMED: dict[str, Answer] = {
    "choices are a string": Answer({"choices": "x"}),
    "choices are an object": Answer({"choices": {"a": 1}}),
    "choices are a number": Answer({"choices": 1}),
    "no choice": Answer({"choices": []}),
    "a choice that is null": Answer({"choices": [None]}),
    "a choice that is a list": Answer({"choices": [[1]]}),
    "two choices": Answer({"choices": choice()["choices"] * 2}),
    "no object": Answer(["x"]),
    "lists in lists": Answer([[1]]),
    "null": Answer(b"null"),
    "a number": Answer(b"1"),
    "a string": Answer(b'"choices"'),
    "nothing": Answer(b""),
    "an empty object": Answer({}),
    "half of it": Answer(digits(*FIVE).data[:-20]),
    "two of them": Answer(digits(*FIVE).data * 2),
    "nested deeply": Answer(b'{"choices":' + b"[" * 60_000 + b"]" * 60_000 + b"}"),
    "nested deeply in objects": Answer(b'{"choices":' + b'{"a":' * 60_000 + b"1" + b"}" * 60_000 + b"}"),
    "a number of 6,000 digits": Answer(b'{"choices": ' + b"1" * 6_000 + b"}"),
    "no UTF-8": Answer(b'{"choices": "\xff\xfe\xfa"}'),
    "a page": Answer(b"<html>Please log in</html>", kind="text/html"),
    "JSON that says it is a page": Answer(digits(*FIVE).data, kind="text/html"),
    "text is null": Answer(choice(text=None)),
    "text is a list": Answer(choice(text=["Level: 5"])),
    "text is an object": Answer(choice(text={"a": 1})),
    "no text": Answer({"choices": [{"index": 0, "finish_reason": "stop"}]}),
    "finish_reason is a list": Answer(choice(finish_reason=["stop"])),
    "log-probs are a string": Answer(choice(logprobs="-1")),
    "log-probs are a list": Answer(choice(logprobs=[-1.0])),
    "top log-probs are a string": Answer(choice(logprobs={"top_logprobs": "x"})),
    "top log-probs are an object": Answer(choice(logprobs={"top_logprobs": {"a": -1}})),
    "a position that is null": Answer(choice(logprobs={"top_logprobs": [None]})),
    "a position that is a list": Answer(choice(logprobs={"top_logprobs": [[-1.0]]})),
    "a log-prob that is a string": Answer(with_logprob('"-1"')),
    "a log-prob that is null": Answer(with_logprob("null")),
    "a log-prob that is a list": Answer(with_logprob("[-1]")),
    "a log-prob that is true": Answer(with_logprob("true")),
    "a log-prob that is NaN": Answer(with_logprob("NaN")),
    "a log-prob that is infinite": Answer(with_logprob("Infinity")),
    "a log-prob that is minus infinity": Answer(with_logprob("-Infinity")),
    "a log-prob that overflows": Answer(with_logprob("1e999")),
    "a log-prob above 0": Answer(with_logprob("1.5")),
    "a token id that is no number": Answer(choice(token_ids=["5"])),
    "token ids that are no list": Answer(choice(token_ids="5")),
    "a stream": Answer(b'data: {"choices": []}\n\n', kind="text/event-stream"),
    "a redirect": Answer(b"", status=302, headers={"Location": "http://u:geheim@127.0.0.1:9/"}),
    "packed": Answer(gzip.compress(digits(*FIVE).data), headers={"Content-Encoding": "gzip"}),
    "a bomb": Answer(gzip.compress(b" " * 50_000_000), headers={"Content-Encoding": "gzip"}),
    "huge": Answer(b'{"choices": "' + b"x" * 30_000_000 + b'"}'),
    "an error that is a list": Answer([1], status=400),
    "an error that is no JSON": Answer(b"\xff\xfe no", status=400),
    "an error with a message that is an object": Answer({"error": {"message": {"a": 1}}}, status=400),
}


@pytest.mark.parametrize("fault", MALFORMED.values(), ids=MALFORMED)
def test_whatever_a_server_answers_fails_that_query_alone(fault):
    with FakeServer(lambda number, body: fault if len(body["prompt"]) > 60 else digits(*FIVE)) as server:
        asked = backend(server.url)
        replies = run(asked, [short("a"), short("x" * 100), short("b")])
        judgements = [judgement_of(reply, "expected", 0.01) for reply in replies]
    assert [judgement.status for judgement in judgements] == ["ok", "error", "ok"]
    assert judgements[1].score is None
    assert server.url in judgements[1].rationale
    assert len(judgements[1].rationale) < 1000
    assert "geheim" not in judgements[1].rationale


@pytest.mark.parametrize(
    "name", ["no choice", "text is null", "nested deeply", "huge", "a bomb", "no UTF-8", "half of it"]
)
def test_nor_does_a_rationale(name):
    with FakeServer(lambda number, body: MALFORMED[name]) as server:
        [reply] = run(backend(server.url), [written("a")])
    assert judgement_of(reply, "rationale", 0.01).status == "error"


NO_LABELS = {
    "no log-probs": completion("4"),
    "log-probs by text": Answer(choice(logprobs={"top_logprobs": [{"4": -0.1}]})),
    "no position": Answer(choice(logprobs={"top_logprobs": []})),
}


@pytest.mark.parametrize("answer", NO_LABELS.values(), ids=NO_LABELS)
def test_labels_without_log_probs_are_an_error_that_says_so(answer):
    with FakeServer(lambda number, body: answer) as server:
        [reply] = run(backend(server.url), [short("a")])
    assert reply.status == "error"
    assert "scoring: rationale" in reply.text


def test_probabilities_beyond_one_are_no_score():
    """Each is a probability; only their sum gives the server away."""
    with FakeServer(lambda number, body: digits(0.9, 0.9, 0.9, 0.9, 0.9)) as server:
        [reply] = run(backend(server.url), [short("a")])
    assert judgement_of(reply, "expected", 0.01).status == "error"


def test_other_tokens_than_the_labels_are_no_mass():
    with FakeServer(lambda number, body: completion(top={0: -0.1, 1: -3.0})) as server:
        [reply] = run(backend(server.url), [short("a")])
    assert judgement_of(reply, "expected", 0.01).status == "unparseable"


@pytest.mark.parametrize(
    ("reason", "status"),
    [("stop", "ok"), ("length", "unparseable"), ("content_filter", "unparseable"), (None, "unparseable")],
)
def test_only_a_finished_reply_has_a_score(reason, status):
    with FakeServer(lambda number, body: Answer(choice(finish_reason=reason, logprobs=None))) as server:
        [reply] = run(backend(server.url), [written("a")])
    assert judgement_of(reply, "rationale", 0.01).status == status


def test_rounding_above_0_and_half_a_character_are_lived_with():
    found = read_completion(json.dumps(choice(text="\ud800x", logprobs={"token_logprobs": [1e-6]})).encode())
    assert found.token_logprobs == (0.0,)
    assert found.text.encode("utf-8").endswith(b"x")
    with pytest.raises(MalformedAnswerError, match="at most 0"):
        read_completion(json.dumps(choice(logprobs={"token_logprobs": [0.1]})).encode())


def test_a_long_reply_is_kept_in_parts():
    story = "x" * 15_000 + ".\nLevel: 4"
    with FakeServer(lambda number, body: completion(story)) as server:
        [reply] = run(backend(server.url), [written("a")])
    judgement = judgement_of(reply, "rationale", 0.01)
    assert judgement.score == 4.0
    assert len(judgement.rationale) <= LONGEST_RATIONALE
    assert judgement.rationale.endswith("Level: 4")
    assert "characters left out" in judgement.rationale


# ------------------------------------------------------------------ a dead server


def test_a_server_that_is_gone_is_given_up_once_for_all(monkeypatch):
    url, connected = f"http://127.0.0.1:{free_port()}/v1", []
    attempt = CompletionServer._try
    monkeypatch.setattr(CompletionServer, "_try", lambda *asked: connected.append(asked) or attempt(*asked))
    asked = backend(url, retries=1, concurrency=2)
    with pytest.raises(JudgeError, match=rf"{url} does not answer.*--resume"):
        run(asked, [short(f"{k}") for k in range(400)])
    assert len(connected) < 60, "each of 400 requests would wait half a second for its second try, two at a time"


def test_a_server_that_hangs_is_given_up_once_for_all():
    released = threading.Event()
    with FakeServer(lambda number, body: digits(*FIVE) if released.wait(LONG) else Answer(drop=True)) as server:
        with pytest.raises(JudgeError, match=rf"{server.url} does not answer.*no answer within 0.2 s"):
            run(backend(server.url, timeout=0.2, concurrency=4), [short(f"{k}") for k in range(400)])
        released.set()
    assert len(server.bodies) < 60, "400 requests, four at a time, would wait 20 seconds"


def test_a_server_that_stumbles_is_no_dead_server():
    """Many connections in a row are dropped, but when it is asked by itself it answers."""
    with FakeServer(lambda number, body: Answer(drop=True) if len(body["prompt"]) > 60 else digits(*FIVE)) as server:
        replies = run(backend(server.url, concurrency=4), [short("x" * 100 + f"{k}") for k in range(40)] + [short("a")])
    assert [reply.status for reply in replies] == ["error"] * 40 + ["ok"]


def test_a_server_that_refuses_is_no_dead_server():
    with FakeServer(lambda number, body: Answer({"error": "no"}, status=400)) as server:
        replies = run(backend(server.url), [short(f"{k}") for k in range(40)])
    assert [reply.status for reply in replies] == ["error"] * 40


def test_a_start_sees_whether_the_server_is_there():
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(JudgeError, match=url):
        backend(url).check(short(""))
    with FakeServer(lambda number, body: digits(*FIVE)) as server:
        backend(server.url).check(short(""))
        assert not server.bodies, "nothing is asked for"


@pytest.mark.parametrize("query", [short("a"), written("a")])
def test_a_server_samples_by_the_models_own_probabilities(query):
    # left out, vLLM takes them from the model's generation config: Qwen2.5's has a repetition penalty of 1.05
    with FakeServer(lambda number, body: digits(*FIVE)) as server:
        run(backend(server.url), [query])
    (body,) = server.bodies
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    neutral |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert {name: body.get(name) for name in neutral} == neutral


# ------------------------------------------------------------------ proxies


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense://x"])
def test_a_server_on_this_machine_needs_no_proxy(monkeypatch, proxy):
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("ALL_PROXY", proxy)
    with FakeServer(lambda number, body: digits(*FIVE)) as server:
        assert run(backend(server.url), [short("a")])[0].status == "ok"


def test_a_proxy_before_a_server_is_named(monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{free_port()}")
    (reply,) = run(backend("http://judges.invalid/v1"), [short("a")])
    assert (reply.status, reply.text.split(": ")[0]) == ("error", "http://judges.invalid/v1 (through a proxy)")
    assert "secret" not in reply.text
    monkeypatch.setenv("no_proxy", "judges.invalid")
    (reply,) = run(backend("http://judges.invalid/v1"), [short("a")])
    assert "proxy" not in reply.text


@pytest.mark.parametrize("proxy", ["nonsense://me:secret@x", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_one_line(monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(ConfigError, match="NO_PROXY=judges") as caught:
        backend("http://judges/v1")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("no_proxy", "judges")
    backend("http://judges/v1")


# ------------------------------------------------------------------ another server


def experiment(**server: Any) -> Experiment:
    node = {"name": "server", "url": "http://one:8000/v1", "model": "m", **server}
    judge = {"name": "same_model", "weights": "frozen", "backend": node}
    layer = {"model": {"name": "chain"}, "data": {"train": {"name": "chain"}}}
    return from_layers(Experiment, [{**layer, "reward": {"name": "outcome", "judge": judge}}])


def begun(folder: Path) -> RunDirectory:
    run = RunDirectory(folder / "run")
    run.create(configuration.to_yaml(experiment()))
    return run


@pytest.mark.parametrize(
    "changed",
    [
        {"url": "https://u:pw@two:9000/v1"},
        {"timeout": 7.0, "retries": 0},
        {"concurrency": 3, "api_key_env": "OTHER"},
    ],
)
def test_a_run_goes_on_with_another_server(tmp_path, changed):
    run, now = begun(tmp_path), experiment(**changed)
    run.check(configuration.to_yaml(now), resume=True, free=configuration.free_keys(now))


@pytest.mark.parametrize("changed", [{"model": "other"}, {"structured_outputs": True}, {"context_length": 100}])
def test_but_not_with_another_model(tmp_path, changed):
    run, now = begun(tmp_path), experiment(**changed)
    with pytest.raises(RunDirectoryError, match=rf"reward\.judge\.backend\.{next(iter(changed))}") as caught:
        run.check(configuration.to_yaml(now), resume=True, free=configuration.free_keys(now))
    assert "Only run_dir, " in str(caught.value)
    assert "reward.judge.backend.url" in str(caught.value)


# ------------------------------------------------------------------ passwords

PASSWORD = "s3cret-Pa55"


def test_a_password_in_the_url_is_used_and_shown_nowhere(capfd, caplog):
    echo = {"error": {"message": f"Basic {PASSWORD} is not known, nor dTpzM2NyZXQtUGE1NQ=="}}
    with caplog.at_level("DEBUG"), FakeServer(lambda number, body: Answer(echo, status=400)) as server:
        options = ServerBackend.Config(url=server.url.replace("//", f"//u:{PASSWORD}@"), model="fake", retries=0)
        asked = ServerBackend.made(options, tokenizer=character_tokenizer())
        [reply] = run(asked, [short("a")])
    assert server.headers[0]["authorization"] == "Basic dTpzM2NyZXQtUGE1NQ=="
    assert reply.status == "error"
    shown = capfd.readouterr()
    texts = [
        repr(options),
        repr(asked),
        asked.identity,
        configuration.to_yaml(options),
        reply.text,
        caplog.text,
        *shown,
    ]
    for text in texts:
        assert PASSWORD not in text
        assert "dTpzM2NyZXQtUGE1NQ==" not in text


@pytest.mark.parametrize(
    "url", ["ftp://u:pw@h/v1", "http://u:pw@", "http://u:pw@h:port/v1", "http://u:pw@h/v1?a=b", "u:pw@h"]
)
def test_a_url_that_is_none_is_refused_without_its_password(url):
    with pytest.raises(ValueError, match="url") as caught:
        split_credentials(url)
    assert "pw" not in str(caught.value) or "//" not in url


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-1\x01secret")
    options = ServerOptions(url="http://127.0.0.1:9/v1", model="fake", api_key_env="JUDGE_KEY")
    with pytest.raises(Exception, match="JUDGE_KEY has characters") as caught:
        CompletionServer(options)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("JUDGE_KEY", "sk-1\n")
    with FakeServer(lambda number, body: completion("x")) as server:
        CompletionServer(ServerOptions(url=server.url, model="m", api_key_env="JUDGE_KEY")).submit(
            prompt=[1], max_tokens=1
        ).result(LONG)
    assert server.headers[0]["authorization"] == "Bearer sk-1"


def test_a_cancelled_request_is_no_error():
    released = threading.Event()
    with FakeServer(lambda number, body: completion("x") if released.wait(LONG) else Answer(drop=True)) as server:
        request = CompletionServer(ServerOptions(url=server.url, model="m")).submit(prompt=[1], max_tokens=1)
        until(lambda: server.bodies)
        assert request.cancel()
        released.set()


def test_failures_name_the_server_once_each():
    with FakeServer(lambda number, body: Answer({"error": {"message": "too long"}}, status=400)) as server:
        request = CompletionServer(ServerOptions(url=server.url, model="m")).submit(prompt=[1], max_tokens=1)
        with pytest.raises(RequestFailedError, match=f"^{server.url}: HTTP 400: too long$"):
            request.result(LONG)
