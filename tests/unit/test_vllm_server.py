"""The engine whose servers follow the policy, against servers of real weights on loopback and all that may befall them.

What vLLM itself does is in tests/vllm/test_followed.py.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from exprl.config import free_keys, from_layers, to_yaml, validate_choice
from exprl.engines import Sampling, VLLMServerEngine
from exprl.engines.canary import TOLERANCES
from exprl.engines.http import ServerOptions
from exprl.engines.servers import following
from exprl.errors import ConfigError, EngineError, ModelError
from exprl.experiment import Experiment
from exprl.judges import SameModelJudge
from exprl.judges.backends import served as judges_served
from exprl.judges.backends.auto import AutoBackend
from exprl.judges.backends.base import JudgeModel, Query
from exprl.judges.backends.setting import Setting
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.backends.vllm_server import VLLMServerBackend, _beginning
from exprl.judges.prefixes import Parts
from exprl.judges.prompting import compose
from exprl.judges.scoring import LABELS, REPLY_START
from exprl.models.base import LanguageModel
from exprl.registry import ENGINES, JUDGES
from exprl.resources import Resources
from exprl.rewards import OutcomeReward
from exprl.runs.directory import differences
from exprl.runs.timeline import ANSWERING, Timeline, read_timeline
from exprl.terminal.progress import no_progress
from exprl.training.lookahead import computing_here
from exprl.types import JudgeRequest
from tests.control_server import Gone
from tests.policy_server import SERVED, PolicyServer
from tests.vllm.helpers import (
    adapted,
    base_of,
    engine_logprobs,
    flat,
    gap,
    load,
    move as move_adapter,
    problem,
    prompt,
    same_where_known,
    sample,
    small_policy,
    tokens,
    trainer_logprobs,
)
from tests.waiting import LONG, until


@pytest.fixture(scope="module")
def initial() -> LanguageModel:
    return small_policy()


@pytest.fixture
def policy(initial: LanguageModel) -> Iterator[LanguageModel]:
    """Its weights may be changed."""
    before = copy.deepcopy(initial.model.state_dict())
    yield initial
    load(initial.model, before)


@contextmanager
def served(
    policy: LanguageModel, count: int = 2, **options: Any
) -> Iterator[tuple[VLLMServerEngine, list[PolicyServer]]]:
    servers = [PolicyServer(policy) for _ in range(count)]
    with ExitStack() as stack:
        for server in servers:
            server.start()
            stack.callback(server.stop)
        limits = {"timeout": LONG, "health_timeout": LONG, "sync_timeout": LONG}
        settings = {**limits, "retries": 0, "health_interval": 0.1, **options}
        engine = VLLMServerEngine(urls=[server.url for server in servers], **settings, policy=policy)
        stack.callback(engine.close)
        yield engine, servers


def prompts(policy: LanguageModel, count: int = 4) -> list[Any]:
    return [prompt(policy.tokenizer, f"<user>{k}?<end><assistant>", str(k)) for k in range(count)]


def move(policy: LanguageModel, amount: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1 + amount)


def dying(server: PolicyServer, after: int) -> Callable[[Any], None]:
    """It ends with this many rollouts answered."""
    lock, left = threading.Lock(), [after]

    def fault(body: Any) -> None:
        with lock:
            left[0] -= 1
        if left[0] < 0:
            raise Gone

    return fault


# ------------------------------------------------------------------ weights


def test_rollouts_are_the_policy_s_after_every_update(policy):
    with served(policy) as (engine, servers):
        for version in (0, 1, 2):
            move(policy)
            engine.sync(version)
            rollouts = flat(sample(engine, prompts(policy), n=2, max_new_tokens=6, seed=version))
            assert gap(engine_logprobs(rollouts), trainer_logprobs(policy, rollouts, 1.0)) < 1e-5
            assert {rollout.policy_version for rollout in rollouts} == {version}
        assert all(len(server.asked) > 3 for server in servers), "more than canaries, at both"
        counts = engine.counts()
        assert 0 <= counts.pop("canary_gap") < 1e-5
        assert counts == {"servers": 2.0, "servers_lost": 0.0, "resubmitted": 0.0}


def test_samples_depend_on_their_seeds_and_not_on_who_is_asked(policy):
    questions, settings = prompts(policy), {"n": 3, "max_new_tokens": 6}
    with served(policy, count=1) as (engine, _):
        alone = tokens(sample(engine, questions, **settings, seed=1))
    with served(policy, count=3) as (engine, _):
        assert tokens(sample(engine, questions, **settings, seed=1)) == alone
        assert tokens(sample(engine, questions, n=2, max_new_tokens=6, seed=1)) == [group[:2] for group in alone]
        assert tokens(sample(engine, questions, **settings, seed=2)) != alone


def test_each_server_is_taken_down_in_a_row_of_its_own_while_it_answers(policy, tmp_path):
    timeline = Timeline(tmp_path, 0, steps_done=lambda: 4)
    timeline.open(4, ranks=1, first=True)
    with served(policy) as (engine, servers):
        engine.record_to(timeline.row)
        for version in (0, 1):
            engine.sync(version)
            began = time.time()
            sample(engine, prompts(policy), n=2, max_new_tokens=6)
            ended = time.time()
        servers[0].faults["/v1/completions"] = dying(servers[0], after=0)
        sample(engine, prompts(policy), n=2, max_new_tokens=6)
    spans = read_timeline(tmp_path)
    assert {(span.row, span.name, span.step) for span in spans} == {
        ("server 0", ANSWERING, 5),
        ("server 1", ANSWERING, 5),
    }
    assert all(span.finished for span in spans), "that of the server that died as well"
    for row in ("server 0", "server 1"):
        own = [span for span in spans if span.row == row]
        assert all(before.end <= after.start for before, after in pairwise(own))
        assert any(began <= span.start <= span.end <= ended for span in own)


def transposed(weights: Any) -> Any:
    return ((n, w.t().contiguous() if n.endswith("o_proj.weight") else w) for n, w in weights)


def scaled(weights: Any) -> Any:
    return ((n, 1.2 * w if n == "model.norm.weight" else w) for n, w in weights)


def without_one(weights: Any) -> Any:
    return ((n, w) for n, w in weights if n != "model.layers.1.mlp.up_proj.weight")


CANARY = r"server 0 .* disagree at policy version 1.*mean absolute difference"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(transposed, CANARY), (scaled, CANARY), (without_one, "not the tensors they were: .*a tensor was left out")],
)
def test_wrong_weights_are_caught_before_the_next_rollout(policy, monkeypatch, wrong, message):
    whole = following.policy_weights
    with served(policy) as (engine, _):
        engine.sync(0)
        move(policy)
        monkeypatch.setattr(following, "policy_weights", lambda *args: wrong(whole(*args)))
        with pytest.raises(EngineError, match=message):
            engine.sync(1)
        monkeypatch.undo()
        engine.sync(1)
        assert len(flat(sample(engine, prompts(policy), n=1, max_new_tokens=2))) == 4


def test_one_server_that_keeps_old_weights_is_caught(policy):
    with served(policy) as (engine, servers):
        engine.sync(0)
        move(policy)
        servers[1].keeps = set(policy.model.state_dict())
        with pytest.raises(EngineError, match=r"server 1 .* disagree at policy version 1"):
            engine.sync(1)


def test_after_a_failed_update_nothing_is_sampled(policy):
    with served(policy) as (engine, servers):
        engine.sync(0)
        move(policy)
        servers[1].keeps = set(policy.model.state_dict())
        with pytest.raises(EngineError, match="disagree"):
            engine.sync(1)
        with pytest.raises(EngineError, match="disagree"):
            sample(engine, prompts(policy), n=1, max_new_tokens=2)


def test_a_stale_version_is_not_sampled_from(policy, caplog):
    """Somebody else's update came in between."""
    with served(policy) as (engine, servers):
        engine.sync(0)
        servers[0].version = "other/7"
        rollouts = flat(sample(engine, prompts(policy), n=2, max_new_tokens=3))
        assert len(rollouts) == 8
        counts = engine.counts()
        assert (counts["servers"], counts["servers_lost"], counts["resubmitted"]) == (1.0, 1.0, 0.0)


def test_rollouts_of_a_batch_in_which_the_version_changed_are_refused(policy):
    with served(policy) as (engine, servers):
        engine.sync(0)
        stream = engine.generate(prompts(policy), Sampling(n=2, max_new_tokens=3))
        next(stream)
        servers[0].version = servers[1].version = "other/7"
        with pytest.raises(EngineError, match="refused"):
            list(stream)


# ------------------------------------------------------------------ servers that die


def test_the_others_answer_what_a_dead_server_leaves_and_the_console_says_so_once(policy, caplog):
    questions, settings = prompts(policy, 6), {"n": 3, "max_new_tokens": 5, "seed": 4}
    with served(policy, count=1) as (engine, _):
        expected = tokens(sample(engine, questions, **settings))
    with caplog.at_level(logging.WARNING), served(policy) as (engine, servers):
        engine.sync(0)
        servers[1].faults["/v1/completions"] = dying(servers[1], after=2)
        assert tokens(sample(engine, questions, **settings)) == expected, "each once, with its own seed"
        counts = engine.counts()
        assert (counts["servers"], counts["servers_lost"]) == (1.0, 1.0)
        assert counts["resubmitted"] > 0
        until(lambda: caplog.messages)
        engine.sync(1)
        sample(engine, questions, **settings)
    [said] = caplog.messages
    assert said.startswith(f"server 1 ({servers[1].url}) is lost: it gives no answer; it is left out")


def test_one_that_does_not_take_an_update_is_left_out_and_comes_back(policy, caplog):
    with served(policy) as (engine, servers):
        engine.sync(0)
        servers[0].faults["/update_weights"] = lambda body: (500, {"error": {"message": "out of memory"}})
        move(policy)
        engine.sync(1)
        until(lambda: caplog.messages)
        assert "did not take the weights" in caplog.messages[0]
        assert "out of memory" in caplog.messages[0]
        counts = engine.counts()
        assert (counts["servers"], counts["servers_lost"], counts["resubmitted"]) == (1.0, 1.0, 0.0)
        servers[0].faults.clear()
        servers[0].active = False
        engine.sync(2)
        assert engine.counts()["servers"] == 2.0
        assert servers[0].paths().count("/init_weight_transfer_engine") == 2
        rollouts = flat(sample(engine, prompts(policy), n=2, max_new_tokens=4))
        assert gap(engine_logprobs(rollouts), trainer_logprobs(policy, rollouts, 1.0)) < 1e-5


def test_a_server_that_another_run_takes_meanwhile_says_so(policy):
    with served(policy, count=1) as (engine, [server]):

        def taken(body: Any) -> tuple[int, Any]:
            server.version = "theirs/3-incomplete"
            return 500, {"error": {"message": "start_weight_update must be called before"}}

        server.faults["/update_weights"] = taken
        with pytest.raises(EngineError, match=r"another run gives it weights \('theirs/3-incomplete'\)"):
            engine.sync(0)


def test_with_none_left_the_run_stops(policy):
    with served(policy) as (engine, servers):
        engine.sync(0)
        for server in servers:
            server.faults["/v1/completions"] = dying(server, after=1)
        with pytest.raises(EngineError, match=r"no server is left .*server 0 .*server 1 .*--resume"):
            sample(engine, prompts(policy), n=2, max_new_tokens=3)
        with pytest.raises(EngineError, match="no server is left"):
            engine.sync(1)


def hurry(engine: VLLMServerEngine, number: int) -> None:
    """This server has half a second for each call and request; the others, which are well, must not need luck."""
    following, member = engine._link.following, engine._link.fleet._members[number]
    following._connected[member.address].timeout = 0.5
    asked = member.completions.options
    member.completions.options = ServerOptions(url=asked.url, model=asked.model, timeout=0.5, retries=0)


@pytest.mark.parametrize("where", ["/finish_weight_update", "/v1/completions"], ids=["update", "canary"])
def test_a_server_that_hangs_is_left_out_of_an_update_within_the_limit(policy, where):
    release = threading.Event()
    with served(policy) as (engine, servers):
        engine.sync(0)
        hurry(engine, 0)
        servers[0].faults[where] = lambda body: release.wait(LONG) and None
        engine.sync(1)
        release.set()
        assert engine.counts()["servers"] == 1.0


# ------------------------------------------------------------------ at the start


def test_servers_that_are_not_there_are_told_with_the_command_that_starts_one(policy):
    with served(policy) as (engine, servers):
        servers[1].stop()
        with pytest.raises(EngineError) as told:
            engine.sync(0)
    message = str(told.value)
    assert f"no answer from server 1 ({servers[1].url})" in message
    assert "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server" in message
    assert """--weight-transfer-config '{"backend": "exprl_file"}'""" in message
    assert "--served-model-name policy" in message


def test_a_server_that_cannot_take_weights_is_an_error_at_the_start(policy):
    with served(policy) as (engine, servers):
        servers[0].faults["/init_weight_transfer_engine"] = lambda body: (404, {"detail": "Not Found"})
        with pytest.raises(EngineError, match="VLLM_SERVER_DEV_MODE"):
            engine.sync(0)


def unlike_the_run(server: PolicyServer, how: str) -> None:
    """Set it up as somebody would who left out a part of the command."""
    refusals = {
        "/init_weight_transfer_engine": (500, {"error": {"message": "Weight transfer not configured"}}),
        "/v1/completions": (404, {"error": {"message": "no such model"}}),
        "/v1/models": (200, {"data": [{"id": "another/model", "max_model_len": 2**20}]}),
    }
    if how == "short":
        server.context = 16
    else:
        server.faults[how] = lambda body: refusals[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("/init_weight_transfer_engine", "Weight transfer not configured"),
        ("/v1/completions", "does not answer the canary: .*no such model"),
        ("/v1/models", r"serves another/model, but 'policy' is asked for \(rollout.model, --served-model-name\)"),
        ("short", "at most 16 tokens, the run makes some of up to 99: start it with --max-model-len 99"),
    ],
)
def test_at_the_start_each_server_must_suit_the_run_and_the_command_is_shown(policy, how, message):
    with served(policy, max_model_len=99) as (engine, servers):
        unlike_the_run(servers[1], how)
        with pytest.raises(EngineError, match=message) as told:
            engine.sync(0)
    assert servers[1].url in str(told.value)
    assert servers[0].url not in str(told.value), "that one is well"
    assert "--served-model-name policy" in str(told.value)
    assert "--max-model-len 99" in str(told.value)


def test_gpus_that_are_not_there_start_nothing(policy):
    with pytest.raises(ConfigError, match=r"rollout.servers.devices: this machine has \d+ GPUs, .* but got \[4711\]"):
        VLLMServerEngine(servers={"count": 1, "devices": [4711]}, policy=policy)


def test_what_is_given_is_checked_before_anything_is_sent(policy):
    with served(policy, max_model_len=10) as (engine, servers):
        with pytest.raises(TypeError, match="Prompt objects only"):
            engine.generate([problem("p")], Sampling(n=1))  # type: ignore[list-item]
        with pytest.raises(ValueError, match="temperature"):
            engine.generate([], Sampling(n=1, temperature=3.0))
        with pytest.raises(ModelError, match=r"rollout.max_model_len. has a context of 10"):
            engine.generate([prompt(policy.tokenizer, "abcd")], Sampling(n=1, max_new_tokens=7))
        assert list(engine.generate([], Sampling(n=1))) == []
        assert all(server.asked == [] for server in servers)


def test_options(policy):
    for wrong, message in (
        ({}, "exactly one of the two"),
        ({"urls": ["http://a:1"], "servers": {"count": 1}}, "exactly one of the two"),
        ({"urls": ["http://a:1", "http://a:1/v1"]}, "each server once"),
        ({"urls": ["a:1"]}, "must begin with http"),
        ({"servers": {"count": 2, "devices": [1]}}, "need 2 different GPUs"),
    ):
        with pytest.raises(ConfigError, match=message):
            VLLMServerEngine.Config(**wrong)
    engine = ENGINES.get("vllm_server")
    assert engine.trains
    assert engine.overlaps
    secret = VLLMServerEngine.Config(urls=["http://me:pass@a:1/v1"])
    assert secret.urls == ["http://a:1"]
    assert "pass" not in repr(secret)


@pytest.mark.parametrize(("training", "fits"), [(2, True), (3, False), ("auto", False)])
def test_gpus_are_the_servers_or_the_trainer_s(training: Any, fits: bool) -> None:
    config = VLLMServerEngine.Config(servers={"count": 2, "devices": [2, 3]})
    shared = VLLMServerEngine.Config(servers={"count": 2, "devices": [2, 3]}, transfer="ipc")
    experiment = SimpleNamespace(trainer=SimpleNamespace(accelerator="auto", devices=training))
    VLLMServerEngine.check_fit(shared, experiment)
    if fits:
        VLLMServerEngine.check_fit(config, experiment)
        return
    with pytest.raises(ConfigError, match=r"servers.devices: with trainer.devices=(3|auto) the policy trains on"):
        VLLMServerEngine.check_fit(config, experiment)


def test_a_run_may_go_on_with_other_servers():
    def saved(**rollout: Any) -> Any:
        source = {"train": {"name": "chain", "steps": 2, "count": 8}}
        own = {"rollout": {"name": "vllm_server", "max_new_tokens": 8, **rollout}}
        return from_layers(Experiment, [{"model": {"name": "chain"}, "data": source, **own}])

    two = saved(servers={"count": 2})
    others = (saved(servers={"count": 1, "restarts": 0}), saved(urls=["http://a:1"]), saved(servers={"count": 2}))
    for other in others:
        assert differences(to_yaml(two), to_yaml(other), free_keys(two)) == []
    [changed] = differences(to_yaml(two), to_yaml(saved(servers={"count": 2}, dtype="bfloat16")), free_keys(two))
    assert changed.startswith("rollout.dtype")


def test_passwords_reach_the_server_and_no_message(policy):
    with served(policy, count=1) as (_, servers):
        url = servers[0].url.replace("http://", "http://me:p%40ss@")
        engine = VLLMServerEngine(urls=[url], retries=0, policy=policy)
        engine.sync(0)
        assert servers[0].headers["authorization"].startswith("Basic ")
        servers[0].faults["/v1/completions"] = lambda body: (401, {"error": {"message": "bad p@ss"}})
        with pytest.raises(EngineError, match="401") as told:
            sample(engine, prompts(policy), n=1, max_new_tokens=2)
        assert "p@ss" not in str(told.value)
        engine.close()


def test_tolerance(policy):
    assert TOLERANCES["float32"] == 1e-3
    with served(policy, count=1, canary_tolerance=100.0) as (engine, servers):
        servers[0].keeps = set(policy.model.state_dict())
        engine.sync(0)


# ------------------------------------------------------------------ a judge that is the policy itself


def grade(text: str) -> Query:
    return Query(prompt=compose("Grade {x}", {}, {"x": text}), labels=LABELS, reply_start=REPLY_START)


def test_a_live_judge_asks_the_servers_what_it_would_ask_the_policy_here(policy):
    queries = [grade(f"attempt {k}") for k in range(6)]
    here = TransformersBackend(language_model=policy, live=True)
    with served(policy) as (engine, servers):
        backend = VLLMServerBackend(engine=engine)
        for version in (0, 1):
            move(policy)
            engine.sync(version)
            backend.sync()
            replies = backend.run(queries, no_progress)
            expected = here.run(queries, no_progress)
            same_where_known([reply.probabilities for reply in replies], [reply.probabilities for reply in expected])
        assert all(any(body.get("return_tokens_as_token_ids") for body in server.asked) for server in servers)
        assert backend.identity == "small 0 in float32 updated 2 times"


def test_what_a_dead_server_leaves_of_a_judge_s_prompts_the_others_answer(policy):
    with served(policy) as (engine, servers):
        engine.sync(0)
        servers[0].faults["/v1/completions"] = dying(servers[0], after=1)
        replies = VLLMServerBackend(engine=engine).run([grade(f"attempt {k}") for k in range(8)], no_progress)
        assert [reply.status for reply in replies] == ["ok"] * 8


def test_a_prompt_that_a_server_refuses_is_a_failed_judgement_and_no_server_left_ends_the_run(policy):
    with served(policy) as (engine, servers):
        engine.sync(0)
        for server in servers:
            server.faults["/v1/completions"] = lambda body: (400, {"error": {"message": "too long"}})
        [reply] = VLLMServerBackend(engine=engine).run([grade("a")], no_progress)
        assert (reply.status, "too long" in reply.text) == ("error", True)
        for server in servers:
            server.faults["/v1/completions"] = dying(server, after=0)
        with pytest.raises(EngineError, match="no server is left"):
            VLLMServerBackend(engine=engine).run([grade("b")], no_progress)


def test_verdicts_of_other_weights_are_refused_though_no_rollout_was_asked_for_meanwhile(policy):
    with served(policy) as (engine, servers):
        engine.sync(0)
        backend = VLLMServerBackend(engine=engine)
        backend.run([grade("a")], no_progress)
        servers[0].version = servers[1].version = "default"  # both were started anew, or are another run's now
        with pytest.raises(EngineError, match="verdicts may be another policy's, and are refused"):
            backend.run([grade("b")], no_progress)


def test_prompts_about_one_problem_share_their_beginning():
    texts = [{"problem": p, "attempt": a} for p in ("one", "two") for a in ("x", "x and y")]
    whole = [_beginning(compose("{problem}: {attempt}", {}, text)) for text in texts]
    cut = [
        _beginning(compose("{problem}: {attempt}", {}, {**text, "attempt": Parts([text["attempt"]]).prefix(1)}))
        for text in texts
    ]
    for found in (whole, cut):
        assert found[0] == found[1] != found[2] == found[3]


NO_BASE = r"all of the policy trains.* weights: live; or lora\.rank above 0.* backend\.name=server "


@pytest.mark.parametrize("rank", [0, 4])
def test_a_frozen_judge_on_the_servers_needs_an_adapter_before_anything_is_loaded(rank: int) -> None:
    source = {"train": {"name": "chain", "steps": 2, "count": 8}}
    judge = {"name": "same_model", "weights": "frozen", "backend": {"name": "vllm_server"}}
    rollout = {"name": "vllm_server", "max_new_tokens": 8, "urls": ["http://a:1"]}
    rest = {"model": {"name": "chain"}, "data": source, "rollout": rollout, "lora": {"rank": rank}}
    experiment = from_layers(Experiment, [{**rest, "reward": {"name": "outcome", "judge": judge}}])
    config = experiment.reward.config.judge
    if rank:
        config.cls.check_fit(config.config, experiment)
        return
    with pytest.raises(ConfigError, match=NO_BASE):
        config.cls.check_fit(config.config, experiment)


def test_which_judges_the_servers_can_be(policy):
    with served(policy, count=1) as (engine, _):
        resources = Resources(policy=policy, engine=lambda: engine)
        live = JudgeModel(weights="live", judge="same_model")
        assert isinstance(AutoBackend.open(AutoBackend.Config(), live, resources), VLLMServerBackend)
        frozen, own = (JudgeModel(weights=weights, judge="same_model") for weights in ("frozen", "own"))
        with pytest.raises(ConfigError, match=NO_BASE):
            VLLMServerBackend.open(VLLMServerBackend.Config(), frozen, resources)
        with pytest.raises(ConfigError, match=NO_BASE):
            VLLMServerBackend(engine=engine, live=False)
        with pytest.raises(ConfigError, match=r"one of its own\. Set backend\.name=server"):
            VLLMServerBackend.open(VLLMServerBackend.Config(), own, resources)
        here = Resources(policy=policy, initial_policy=lambda: copy.deepcopy(policy), engine=lambda: engine)
        assert isinstance(AutoBackend.open(AutoBackend.Config(), frozen, here), TransformersBackend)
        handed = VLLMServerBackend(engine=engine)
        with pytest.raises(ConfigError, match="its backend has live=True"):
            SameModelJudge(weights="frozen", backend=handed)
    with pytest.raises(ConfigError, match=r"needs rollout\.name=vllm_server"):
        VLLMServerBackend.check_model(VLLMServerBackend.Config(), live, Setting(engine=ENGINES.get("vllm")))


# ------------------------------------------------------------------ beside an adapter the base


@pytest.fixture
def tuned() -> LanguageModel:
    """A policy of which an adapter alone trains."""
    pytest.importorskip("peft", reason="peft is not installed: pip install 'exprl[lora]'")
    return adapted(small_policy())


def judges(policy: LanguageModel, engine: VLLMServerEngine, **options: Any) -> tuple[SameModelJudge, SameModelJudge]:
    """A frozen and a live one, as a run builds them."""

    def refused() -> LanguageModel:
        raise AssertionError("a copy of the initial policy was made for nothing")

    resources = Resources(policy=policy, initial_policy=refused, engine=lambda: engine)
    nodes = ({"name": "same_model", "weights": weights, **options} for weights in ("frozen", "live"))
    frozen, live = (validate_choice(JUDGES, node, "judge").build(resources) for node in nodes)
    return frozen, live


@pytest.mark.parametrize("name", ["auto", "vllm_server"])
def test_beside_an_adapter_a_frozen_judge_asks_the_base(tuned, name):
    queries = [grade(f"attempt {k}") for k in range(4)]
    base = TransformersBackend(language_model=base_of(tuned)).run(queries, no_progress)
    with served(tuned) as (engine, servers):
        frozen, live = (judge.backend for judge in judges(tuned, engine, backend={"name": name}))
        assert type(frozen) is type(live) is VLLMServerBackend
        names = [frozen.identity]
        asked, answered = [], []
        for version in range(3):
            move_adapter(tuned, seed=version)
            engine.sync(version)
            for backend in (frozen, live):
                backend.sync()
                backend.start(queries)  # under way together
            rollouts = flat(sample(engine, prompts(tuned), n=1, max_new_tokens=3))
            assert gap(engine_logprobs(rollouts), trainer_logprobs(tuned, rollouts, 1.0)) < 1e-5
            asked.append([reply.probabilities for reply in frozen.run(queries, no_progress)])
            answered.append([reply.probabilities for reply in live.run(queries, no_progress)])
            same_where_known(asked[-1], [reply.probabilities for reply in base])
            here = TransformersBackend(language_model=tuned, live=True).run(queries, no_progress)
            same_where_known(answered[-1], [reply.probabilities for reply in here])
            names.append(frozen.identity)
        assert asked[0] == asked[1] == asked[2]
        assert answered[0] != answered[1] != answered[2] != asked[2]
        assert set(names) == {"small 0 without its adapter in float32 updated 0 times"}
        assert live.identity == "small 0 in float32 updated 3 times"
        assert all({SERVED} < {body["model"] for body in server.asked} for server in servers)


def test_scores_of_the_frozen_judge_stay_and_are_not_asked_for_again_and_those_of_the_live_one_move(tuned, monkeypatch):
    # random weights seldom have scores among their likeliest tokens
    monkeypatch.setattr(judges_served, "_TOP_LOGPROBS", len(tuned.tokenizer))
    requests = [JudgeRequest(problem=problem(str(k)), trace=f"attempt {k}") for k in range(3)]
    with served(tuned, count=1) as (engine, [server]):
        frozen, live = judges(tuned, engine, min_mass=0.0)
        scores = []
        for version in (0, 1):
            engine.sync(version)
            for judge in (frozen, live):
                judge.sync()
            before = len(server.asked)
            scores.append([[judgement.score for judgement in judge.judge(requests)] for judge in (frozen, live)])
            asked = [body["model"] for body in server.asked[before:]]
            assert asked.count(SERVED) == (0 if version else 3)
            assert len(asked) - asked.count(SERVED) == 3
            move_adapter(tuned, seed=version, size=0.2)
        (before_frozen, before_live), (after_frozen, after_live) = scores
        assert None not in before_frozen
        assert before_frozen == after_frozen
        assert all(abs(a - b) > 0.01 for a, b in zip(before_live, after_live, strict=True))
        assert all(abs(a - b) > 0.01 for a, b in zip(before_frozen, before_live, strict=True))
        for judge in (frozen, live):
            assert computing_here(engine, OutcomeReward(judge=judge)) == [], "it may be asked beside the update"
