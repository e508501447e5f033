"""Other ranks are given the numbers of rollouts and none of their texts, and compute the same with them."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from exprl.training.batching import TokenSequence, collate
from exprl.training.callbacks import StepLog
from exprl.training.exchange import RemoteGroup, everyones, own_groups, remote
from exprl.training.metrics import judge_metrics, reward_metrics, rollout_metrics
from exprl.training.no_update import no_update
from exprl.training.records import StepRecords
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
        assert (tensor is None) == (other[name] is None), name
        assert tensor is None or (tensor.dtype == other[name].dtype and tensor.equal(other[name])), name


# ------------------------------------------------------------------ what a lost rank had to write


def owing(tmp_path, lines: int) -> StepLog:
    """A log that goes on from step 2, of which the surviving rank's sample is owed and `lines` of two are on disk."""
    from exprl.runs.directory import RunDirectory
    from exprl.terminal.console import Console

    directory = RunDirectory(tmp_path)
    log = StepLog(directory, Console(quiet=True), max_steps=3, print_samples=0)
    directory.metrics.write_text('{"step": 1}\n{"step": 2, "evaluation/pass@1": 0.5}\n{"step": 2}\n')
    directory.samples.write_text('{"step": 1}\n{"step": 1}\n' + '{"step": 2}\n' * lines)
    owed = StepRecords(step=2, metrics={}, samples=[{"step": 2}], count=2, no_update=None)
    log.load_state_dict({"metrics.jsonl": 1, "samples.jsonl": 2, "owed": vars(owed)})
    return log


def test_a_step_that_a_lost_rank_had_written_is_not_owed(tmp_path) -> None:
    log = owing(tmp_path, lines=2)
    log.pass_over_written()
    assert log.owed is None
    assert [log.cut(path, 2) for path in log.files] == [log.expected[path.name] for path in log.files] == [2, 4]


def test_a_step_that_it_had_written_in_part_is_owed_without_its_samples(tmp_path, caplog) -> None:
    log = owing(tmp_path, lines=1)
    log.pass_over_written()
    assert "of step 2 the samples of 1 rollouts are lost" in caplog.text
    assert log.owed is not None
    log.owed = replace(log.owed, count=len(log.owed.samples))
    log.lines = {path.name: log.cut(path, 1) for path in log.files}
    log.settle()
    assert log.lines == {"metrics.jsonl": 2, "samples.jsonl": 3}


def test_reward_of_a_whole_rollout_travels_too() -> None:
    reward = RolloutReward(value=0.5, length=3, judgements=(Judgement(score=3.0, rationale=SECRET),))
    [(_, [sent])] = remote([(group(), (reward,))])
    assert sent == replace(reward, judgements=(Judgement(score=3.0),))
