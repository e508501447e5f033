"""The parts of looking one step ahead: who would be in the way, the thread, a batch in a checkpoint, the gap."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from exprl.engines.transformers import TransformersEngine
from exprl.errors import DataError, EngineError
from exprl.judges import ReferenceStepsJudge, SameModelJudge, WrongReferenceJudge
from exprl.judges.backends.server import ServerBackend
from exprl.judges.backends.transformers import TransformersBackend
from exprl.models.base import LanguageModel
from exprl.rewards import OutcomeReward, Reward, SparseReward
from exprl.rewards.by_domain import ByDomainReward
from exprl.training.gap import STALE_GAP, check_gap
from exprl.training.lookahead import Background, Batch, CancelledError, computing_here, decoded, encoded
from exprl.types import Hidden, Problem, Prompt, Question, Rollout, RolloutGroup, RolloutReward, Scaffold
from exprl.verifiers import ExactVerifier
from tests.conftest import character_tokenizer, tiny_llama
from tests.waiting import LONG


class Elsewhere(TransformersEngine):
    overlaps = True


class Own(Reward):
    granularity = "rollout"

    def score(self, groups: Any, on_progress: Any = None) -> Any:
        return []


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    tokenizer = character_tokenizer()
    return LanguageModel(model=tiny_llama(len(tokenizer)), tokenizer=tokenizer, name="tiny")


def outcome(judge: Any) -> OutcomeReward:
    return OutcomeReward(judge=judge)


class TestWhoComputesHere:
    def test_an_engine_that_does_and_rewards_that_do_not(self, policy: LanguageModel) -> None:
        sparse = SparseReward(verifier=ExactVerifier())
        steps = outcome(ReferenceStepsJudge())
        for reward in (sparse, steps, ByDomainReward(domains={"math": steps, "code": sparse})):
            assert computing_here(TransformersEngine(policy=policy), reward) == ["engine 'transformers'"]
            assert computing_here(Elsewhere(policy=policy), reward) == []

    def test_a_judge_whose_model_runs_here_however_deep_it_lies(self, policy: LanguageModel) -> None:
        here = SameModelJudge(weights="frozen", backend=TransformersBackend(language_model=policy))
        for reward in (outcome(here), ByDomainReward(domains={"math": outcome(here)})):
            assert computing_here(Elsewhere(policy=policy), reward) == ["backend 'transformers'"]

    def test_a_judge_whose_model_runs_on_a_server(self, policy: LanguageModel) -> None:
        pytest.importorskip("httpx2")
        backend = ServerBackend(url="http://127.0.0.1:9/v1", model="m", tokenizer=policy.tokenizer)
        judge = SameModelJudge(weights="frozen", backend=backend)
        assert computing_here(Elsewhere(policy=policy), outcome(judge)) == []

    def test_a_wrapper_is_as_the_judge_within(self, policy: LanguageModel) -> None:
        problems = [made(str(number), f"secret {number}") for number in range(3)]
        judge = WrongReferenceJudge(around=ReferenceStepsJudge(), problems=problems, seed=0)
        assert computing_here(Elsewhere(policy=policy), outcome(judge)) == []

    def test_a_reward_of_ones_own_says_so_itself(self, policy: LanguageModel) -> None:
        assert computing_here(Elsewhere(policy=policy), Own()) == ["reward 'Own'"]


# ------------------------------------------------------------------ the thread


class TestBackground:
    def test_what_it_made_and_why_it_failed(self) -> None:
        batch: Batch = []
        good, bad = Background(lambda: batch), Background(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        for one in (good, bad):
            one.start()
            one.wait(LONG)
        assert good.batch is batch
        assert good.error is None
        assert isinstance(bad.error, ZeroDivisionError)

    def test_a_given_up_one_ends_with_its_next_sign_of_life(self) -> None:
        cancelled, ended = threading.Event(), []

        def make() -> Batch:
            cancelled.wait(LONG)
            try:
                background.beat()
            except CancelledError:
                ended.append(True)
            return []

        background = Background(make)
        background.start()
        background.cancel(0)
        cancelled.set()
        background.cancel(LONG)
        assert ended == [True]
        assert not background.running

    def test_silence_has_a_limit_and_what_comes_after_it_does_not_count(self) -> None:
        over = threading.Event()

        def make() -> Batch:
            over.wait(LONG)
            return []

        background = Background(make)
        background.start()
        background.wait(0.01)
        assert isinstance(background.error, EngineError)
        assert "trainer.timeout" in str(background.error)
        over.set()
        background.cancel(LONG)
        assert isinstance(background.error, EngineError)

    def test_a_slow_one_is_waited_for_as_long_as_things_come(self, monkeypatch: pytest.MonkeyPatch) -> None:
        looked, heard, waits = threading.Event(), threading.Event(), []

        class Looks:
            """A wait that is over with the third look, before which the thread gives a sign of life."""

            pause = 0.01

            def __init__(self, limit: float) -> None:
                waits.append(limit)
                self.looks = 0

            def over(self) -> bool:
                if len(waits) > 5:
                    return False
                self.looks += 1
                if self.looks == 2:
                    looked.set()
                    assert heard.wait(LONG)
                    heard.clear()
                return self.looks > 2

        def make() -> Batch:
            for _ in range(5):
                assert looked.wait(LONG)
                looked.clear()
                background.beat()
                heard.set()
            return []

        monkeypatch.setattr("exprl.training.lookahead.Wait", Looks)
        background = Background(make)
        background.start()
        background.wait(1.0)
        assert background.error is None
        assert background.batch == []
        assert len(waits) >= 5, "each sign of life begins another"


# ------------------------------------------------------------------ in a checkpoint


def made(name: str, reference: str = "the secret") -> Problem:
    return Problem(
        question=Question(problem_id=name, text=f"what is {name}?"), scaffold=Scaffold(reference=Hidden(reference))
    )


def batch_of(*names: str) -> Batch:
    batch: Batch = []
    for name in names:
        prompt = Prompt(problem_id=name, text="q", token_ids=(1,))
        rollout = Rollout(
            prompt=prompt,
            token_ids=(4, 5),
            text="ab",
            token_ends=(1, 2),
            sampler_logprobs=(-0.1, -1 / 3),
            finish_reason="stop",
            policy_version=7,
        )
        group = RolloutGroup(problem=made(name), rollouts=(rollout,))
        batch.append((group, (RolloutReward(value=1 / 3, length=2),)))
    return batch


def test_the_parts_of_all_ranks_are_one_batch() -> None:
    parts = [encoded(batch_of("a", "b", "c"), 9), encoded(batch_of("d", "e"), 9)]
    assert decoded(parts, {name: made(name) for name in "abcde"}) == batch_of(*"abcde")


def test_no_reference_is_in_it() -> None:
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(encoded(batch_of("a"), 1))) as file:
        assert not any(b"secret" in file.read(name) for name in file.namelist())


def test_another_problem_or_a_damaged_batch_is_told() -> None:
    part = encoded(batch_of("a"), 9)
    with pytest.raises(DataError, match="problem 'a'"):
        decoded([part], {"a": made("a", "another one")})
    with pytest.raises(DataError, match="the checkpoint's next batch"):
        decoded([part[:-40]], {"a": made("a")})


# ------------------------------------------------------------------ the gap


def test_precision_bounds_fresh_rollouts_and_an_update_stale_ones() -> None:
    check_gap(0.001, 0.001, tokens=8, step="step 1")
    with pytest.raises(EngineError, match=r"step 2: .*0\.001 is allowed.*update\.gap_tolerance"):
        check_gap(0.0011, 0.001, tokens=8, step="step 2")
    check_gap(STALE_GAP, 0.001, tokens=8, step="step 3", stale=True)
    with pytest.raises(EngineError, match=r"step 3: .*1 is allowed.*rollout\.lookahead=0.*start a new run"):
        check_gap(1.01, 0.001, tokens=8, step="step 3", stale=True)
    check_gap(1.9, 2.0, tokens=8, step="step 3", stale=True)
