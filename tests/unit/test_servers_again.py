"""A run whose only server dies under way: real processes, with real weights, in the place of vLLM's."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from exprl.engines import VLLMServerEngine
from exprl.engines.servers import link
from exprl.errors import EngineError
from exprl.judges.backends.vllm_server import VLLMServerBackend
from exprl.models.base import LanguageModel
from exprl.terminal.progress import no_progress
from tests.unit.test_vllm_server import grade, move, prompts, served
from tests.vllm.helpers import (
    engine_logprobs,
    flat,
    gap,
    sample,
    small_policy,
    tokens,
    trainer_logprobs,
)
from tests.waiting import LONG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("forking"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs a watcher that ends servers with it"),
]

SERVER = """
import os, signal, sys
from pathlib import Path
from tests.policy_server import PolicyServer
from tests.vllm.helpers import small_policy

class Ill(PolicyServer):
    def _usual(self, path, body):
        if path == "/v1/completions" and body.get("prompt_logprobs") is None and len(self.asked) > after:
            if marks.is_dir() and (left := sorted(marks.iterdir())):
                left[0].unlink()
                os.kill(os.getpid(), getattr(signal, how))
        return super()._usual(path, body)

marks, how, after = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
server = Ill(small_policy(), int(sys.argv[1]))
server._server.serve_forever()
"""
"""Ends itself once it has answered some, as often as there are files in a folder."""

QUESTIONS: dict[str, Any] = {"n": 3, "max_new_tokens": 5, "seed": 4}


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    return small_policy()


@pytest.fixture(scope="module")
def expected(policy: LanguageModel) -> Any:
    """Rollouts of a server that nothing befalls."""
    with served(policy, count=1) as (engine, _):
        return tokens(sample(engine, prompts(policy), **QUESTIONS))


@contextmanager
def own_server(
    policy: LanguageModel,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    how: str = "SIGKILL",
    deaths: int = 1,
    after: int = 3,
    restarts: int = 3,
    **limits: float,
) -> Iterator[VLLMServerEngine]:
    """An engine with one server of its own that is to die so often, each time having answered so many."""
    (marks := folder / "marks").mkdir()
    for number in range(deaths):
        (marks / str(number)).touch()

    def command(*_: Any, port: int, **others: Any) -> list[str]:
        return [sys.executable, "-c", SERVER, str(port), str(marks), how, str(after)]

    monkeypatch.setattr(link, "server_command", command)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    settings = {"timeout": LONG, "health_timeout": LONG, "sync_timeout": LONG, "health_interval": 0.1, **limits}
    own = {"count": 1, "restarts": restarts, "start_timeout": LONG}
    engine = VLLMServerEngine(servers=own, retries=0, **settings, policy=policy, run_dir=folder)
    try:
        yield engine
    finally:
        engine.close()


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_batch_waits_for_the_only_server_and_goes_on_with_the_same_seeds(
    policy, expected, tmp_path, monkeypatch, caplog, how
):
    limits = {"health_timeout": 3.0} if how == "SIGSTOP" else {}
    with caplog.at_level(logging.WARNING), own_server(policy, tmp_path, monkeypatch, how=how, **limits) as engine:
        engine.sync(7)
        rollouts = sample(engine, prompts(policy), **QUESTIONS)
        assert tokens(rollouts) == expected
        assert gap(engine_logprobs(flat(rollouts)), trainer_logprobs(policy, flat(rollouts), 1.0)) < 1e-5
        assert {rollout.policy_version for rollout in flat(rollouts)} == {7}
        counts = engine.counts()
        assert (counts["servers"], counts["servers_lost"]) == (1.0, 1.0)
        assert 0 < counts["resubmitted"] <= 12
        assert counts["canary_gap"] < 1e-5
        engine.sync(8)
        assert len(flat(sample(engine, prompts(policy), **QUESTIONS))) == 12
    lost, waits = caplog.messages
    assert "is started again (restart 1 of 3), and samples once it has the weights" in lost
    assert ("was ended by SIGKILL (kill -9, or" in lost) == (how == "SIGKILL")
    assert waits.startswith("no server is left to sample from: what it was asked waits")


def test_it_gets_the_weights_of_the_last_update(policy, tmp_path, monkeypatch):
    own = small_policy()
    with own_server(own, tmp_path, monkeypatch, after=8) as engine:
        engine.sync(0)
        move(own)
        engine.sync(1)
        rollouts = flat(sample(engine, prompts(own), **QUESTIONS))
        assert engine.counts()["servers_lost"] == 1.0
        assert gap(engine_logprobs(rollouts), trainer_logprobs(own, rollouts, 1.0)) < 1e-5


def test_a_judge_s_prompts_wait_as_well(policy, tmp_path, monkeypatch):
    with own_server(policy, tmp_path, monkeypatch, deaths=2) as engine:
        engine.sync(0)
        replies = VLLMServerBackend(engine=engine).run([grade(f"attempt {k}") for k in range(8)], no_progress)
        assert [reply.status for reply in replies] == ["ok"] * 8
        assert engine.counts()["servers_lost"] == 2.0


@pytest.mark.parametrize("restarts", [0, 1])
def test_once_its_restarts_are_used_up_the_run_ends(policy, tmp_path, monkeypatch, caplog, restarts):
    with own_server(policy, tmp_path, monkeypatch, deaths=9, restarts=restarts) as engine:
        engine.sync(0)
        with pytest.raises(EngineError, match=r"no server is left .*Their logs are in .*servers\. Go on with --resume"):
            sample(engine, prompts(policy), **QUESTIONS)
    used = "1 time" if restarts == 0 else "2 times"
    assert f"it was started {used} and is left out from now on (rollout.servers.restarts={restarts})" in caplog.text
    assert caplog.text.count("is lost") == restarts + 1


def test_beside_an_update_nobody_waits_since_the_weights_are_others_then(policy, tmp_path, monkeypatch):
    found: list[BaseException] = []

    def make(engine: VLLMServerEngine) -> None:
        try:
            sample(engine, prompts(policy), **QUESTIONS)
        except EngineError as error:
            found.append(error)

    with own_server(policy, tmp_path, monkeypatch) as engine:
        engine.sync(0)
        beside = threading.Thread(target=make, args=(engine,))
        beside.start()
        beside.join()
        assert "does not wait for it: with a larger rollout.servers.count the others go on" in str(found[0])
        engine.sync(1)  # which waits
        assert len(flat(sample(engine, prompts(policy), **QUESTIONS))) == 12
