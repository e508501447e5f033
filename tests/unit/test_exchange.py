"""Other ranks are given the numbers of rollouts and none of their texts, and compute the same with them."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from exprl.rollouts.format import encode
from exprl.rollouts.store import file_name
from exprl.training.batching import TokenSequence, collate
from exprl.training.exchange import RemoteGroup, everyones, own_groups, remote
from exprl.training.metrics import judge_metrics, reward_metrics, rollout_metrics
from exprl.training.no_update import no_update
from exprl.training.records import StepRecords
from exprl.training.step_log import StepLog
from exprl.training.world import World
from exprl.types import Advantages, Judgement, Prompt, RolloutGroup, RolloutReward, ScoredGroup, Segment, SegmentRewards
from tests.integration.ranks_script import CPU, scored_groups
from tests.rollouts import problem_of, rollout_of

SECRET = "a response that stays at home"
PROMPT = Prompt(problem_id="p", text="<|user|> asked", token_ids=(5, 6, 7), reply_opening="<think>")
FAILED = Judgement(score=None, status="unparseable", rationale="x" * 400 + " I cannot say. ")
REWARD = SegmentRewards(
    segments=(Segment(0, 1), Segment(1, 3)),
    values=(0.5, None),
    judgements=(Judgement(score=3.0, rationale=SECRET), FAILED),
)


def group() -> RolloutGroup:
    whole = rollout_of("### ", SECRET, "", prompt=PROMPT, finish="length")
    return RolloutGroup(problem=problem_of(), rollouts=(replace(whole, sampler_logprobs=(-0.5, -0.1, -1e-300)),))


def test_no_text_of_a_rollout_leaves_its_rank() -> None:
    [(far, [reward])] = remote([(group(), (REWARD,))])
    sent = pickle.dumps((far, reward))
    assert SECRET.encode() not in sent
    assert PROMPT.text.encode() not in sent
    assert isinstance(far, RemoteGroup)
    assert far.problem == problem_of()
    assert (reward.segments, reward.values) == (REWARD.segments, REWARD.values)
    assert reward.judgements[0] == Judgement(score=3.0)
    assert reward.judgements[1].rationale == FAILED.rationale.strip()[-300:], "what an error shows of the last replies"


def test_numbers_arrive_as_they_were() -> None:
    [(far, _)] = pickle.loads(pickle.dumps(remote([(group(), (REWARD,))])))
    [rollout], [own] = far.rollouts, group().rollouts
    assert tuple(rollout.token_ids) == own.token_ids
    assert tuple(rollout.sampler_logprobs) == own.sampler_logprobs, "-1e-300 is no single-precision number"
    assert len(rollout) == len(own) == 3
    assert (rollout.prompt.token_ids, rollout.finish_reason, rollout.policy_version) == ((5, 6, 7), "length", 0)
    single = [replace(own, sampler_logprobs=(-0.5, float("nan"), -0.25))]
    [(far, _)] = remote([(replace(group(), rollouts=tuple(single)), (REWARD,))])
    assert far.rollouts[0].sampler_logprobs.dtype == np.float32, "half the bytes where nothing is lost"
    assert np.isnan(far.rollouts[0].sampler_logprobs[1])


def test_ones_own_groups_keep_their_texts() -> None:
    own = [(group(), (REWARD,))]
    assert everyones(World(), own, "the update") == own
    [(far, rewards)] = remote(own)
    advantages = (Advantages(segments=REWARD.segments, values=(0.0, 0.0)),)
    scored = [ScoredGroup(group=g, rewards=rewards, advantages=advantages) for g in (far, group())]
    assert own_groups(scored) == scored[1:]


@pytest.mark.parametrize("packed", [True, False])
def test_batches_and_metrics_are_the_same(packed: bool) -> None:
    here = scored_groups()
    far = [
        replace(s, group=g, rewards=rewards)
        for s, (g, rewards) in zip(here, remote([(s.group, s.rewards) for s in here]), strict=True)
    ]
    for describe in (reward_metrics, judge_metrics, rollout_metrics, lambda scored: no_update(scored, 0)):
        assert describe(far) == describe(here)
    batches = []
    for scored in (here, far):
        sequences = [
            TokenSequence.of(r, a) for s in scored for r, a in zip(s.group.rollouts, s.advantages, strict=True)
        ]
        batches.append(collate(sequences, pad_token_id=0, device=CPU, packed=packed))
    one, other = (vars(batch) for batch in batches)
    for name, tensor in one.items():
        if isinstance(tensor, torch.Tensor):
            assert tensor.dtype == other[name].dtype, name
            assert tensor.equal(other[name]), name
        else:
            assert tensor == other[name], name


# ------------------------------------------------------------------ what a lost rank had to write


@pytest.fixture
def step_log(tmp_path) -> StepLog:
    from exprl.experiment import TrainerConfig
    from exprl.runs.directory import RunDirectory
    from exprl.terminal.console import Console

    return StepLog(RunDirectory(tmp_path), Console(quiet=True), options=TrainerConfig())


def owed(**others) -> StepRecords:
    return StepRecords(**{"step": 2, "metrics": None, "files": {}, "shown": [], "no_update": None, **others})


@pytest.mark.parametrize("written", [True, False])
def test_metrics_that_a_lost_rank_had_written_are_not_owed(step_log: StepLog, written: bool) -> None:
    lines = ['{"step": 1}', '{"step": 2, "evaluation/pass@1": 0.5}', *['{"step": 2}'] * written]
    step_log.directory.metrics.write_text("".join(f"{line}\n" for line in lines))
    records = owed(metrics={"a": 1.0}, sure=False)
    step_log.load_state_dict({"metrics.jsonl": 1, "rollouts": 1, "owed": vars(records)})
    step_log.pass_over_written()
    assert step_log.owed == replace(records, metrics=None if written else {"a": 1.0})
    assert step_log.cut(2) == step_log.expected["metrics.jsonl"] == 1 + written


@pytest.mark.parametrize("lost", [True, False])
def test_rollouts_that_a_lost_rank_did_not_write_are_told(step_log: StepLog, caplog, lost: bool) -> None:
    for name in [file_name(3), *([] if lost else [file_name(2, 0, 2)])]:
        step_log.store.put(name, encode([], step=2))
    records = owed(files={file_name(2, 1, 2): encode([], step=2)})
    step_log.load_state_dict({"metrics.jsonl": 2, "rollouts": 0, "owed": vars(records)})
    assert step_log.cut_rollouts(2) == 1 - lost
    assert list(step_log.store) == [2] * (not lost), "step 3 came after the checkpoint"
    assert ("the rest is lost" in caplog.text) == lost


def test_reward_of_a_whole_rollout_travels_too() -> None:
    reward = RolloutReward(value=0.5, length=3, judgements=(Judgement(score=3.0, rationale=SECRET),))
    [(_, [sent])] = remote([(group(), (reward,))])
    assert sent == replace(reward, judgements=(Judgement(score=3.0),))
