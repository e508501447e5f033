"""Exposure by hand, ranks against a plain forward pass, and the bits that scores hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from exprl.chain import tokenizer as chain_tokenizer
from exprl.chain.source import ChainSource
from exprl.config.validate import validate_choice
from exprl.data.canaries import Canary, canary_of
from exprl.errors import ConfigError, DataError
from exprl.experiment import LeakConfig
from exprl.judges.reference_steps import ReferenceStepsJudge
from exprl.leaks.channel import channel_of, entropy
from exprl.leaks.exposure import chance_exposure, exposure, interval_of, rank
from exprl.leaks.measured import Grades, Log, Measured
from exprl.leaks.regraded import Regraded, differ, pairs_of, regraded
from exprl.leaks.report import COLUMNS, Facts, Row, markdown, rows_of, told_of
from exprl.leaks.values import CONTEXTS, Context, common_and_rest, fitting, logprobs_of_values, value_ids
from exprl.models.base import LanguageModel
from exprl.registry import REWARDS
from exprl.resources import Resources
from exprl.rewards.outcome import OutcomeReward
from exprl.rollouts.stored import StoredGroup
from exprl.text.encoding import encoder_of
from exprl.text.prompts import PromptBuilder
from exprl.types import (
    Curve,
    Judgement,
    Prompt,
    Question,
    Rollout,
    RolloutGroup,
    RolloutReward,
    Scorer,
    Segment,
    SegmentRewards,
)


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    """The miniature world's, with random weights."""
    return LanguageModel(
        model=chain_tokenizer.build_model().eval(), tokenizer=chain_tokenizer.build_tokenizer(), name="random"
    )


def fact(digits: int = 2, template: str = "p+0 {secret}") -> Canary:
    canary = canary_of(
        ChainSource(steps=3, count=1).load()[0], LeakConfig(canaries=1, digits=digits, template=template), 0
    )
    assert canary is not None
    return canary


# ------------------------------------------------------------------ exposure


def test_exposure_by_hand() -> None:
    assert exposure(1, 1000) == pytest.approx(9.965784)
    assert exposure(1000, 1000) == 0
    assert exposure(500.5, 1000) == pytest.approx(0.998558)
    assert chance_exposure(1000) == pytest.approx(np.mean([exposure(place, 1000) for place in range(1, 1001)]))


def test_a_rank_is_that_of_scipy_with_ties_in_the_middle() -> None:
    values = np.random.default_rng(0).integers(0, 9, size=60).astype(float)
    expected = stats.rankdata(-values, method="average")
    assert [rank(values, place) for place in range(60)] == expected.tolist()


def test_an_interval_of_several_runs_reaches_as_far_as_their_means_say() -> None:
    facts = [[1.0, 2.0, 3.0, 2.0] * 10, [5.0, 6.0, 7.0, 6.0] * 10, [3.0, 4.0, 5.0, 4.0] * 10]
    found = interval_of(facts, (0.0, 10.0))
    half = 4.3027 * 2.0 / math.sqrt(3)
    assert found.mean == pytest.approx(4.0)
    assert (found.low, found.high) == (0.0, pytest.approx(4 + half))
    alone = interval_of(facts[:1], (0.0, 10.0))
    assert 1.5 < alone.low < 2.0 < alone.high < 3.0


# ------------------------------------------------------------------ what a policy holds of values


@pytest.mark.parametrize("context", CONTEXTS)
def test_log_probs_of_all_values_are_those_of_a_plain_forward_pass(policy: LanguageModel, context: Context) -> None:
    canary, prompts = fact(), PromptBuilder(policy.tokenizer)
    with policy.inference():
        found = logprobs_of_values(policy, prompts, canary, context)
    prompt = prompts.build(canary.problem.question, canary.problem.domain).token_ids
    before = {"question": "p+0 ", "reference": canary.reference_before()}[context]
    assert before.endswith("p+0 ")
    for value in (0, 7, 42, 99, canary.secret.reveal()):
        ids = torch.tensor([[*prompt, *encoder_of(policy.tokenizer).plain(f"{before}{value:02}")]])
        with torch.no_grad():
            logp = policy.model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        own = logp.gather(1, ids[0, 1:, None])[-2:].sum()
        assert found[value] == pytest.approx(float(own), abs=1e-4)
    assert len(found) == 100


def test_only_probable_numbers_are_left_out_of_one(policy: LanguageModel) -> None:
    """The values' probabilities are at most 1 together, and of a policy that writes digits alone nearly so."""
    prompts = PromptBuilder(policy.tokenizer)
    digits = [policy.tokenizer.convert_tokens_to_ids(str(digit)) for digit in range(10)]
    model = chain_tokenizer.build_model().eval()
    sure = replace(policy, model=model)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head.mul_(0.0)
    hooked = model.get_output_embeddings().register_forward_hook(
        lambda _module, _given, logits: logits.index_fill(-1, torch.tensor(digits), 30.0)
    )
    with sure.inference():
        found = logprobs_of_values(sure, prompts, fact(), "question")
    hooked.remove()
    assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-5)
    assert np.ptp(found) < 1e-5, "each as likely, so every rank is the middle one"
    assert rank(found, 3) == pytest.approx(50.5)


def test_a_template_that_the_policy_cannot_write_is_refused(policy: LanguageModel) -> None:
    for template in ("The code is {secret}", "£ {secret}"):
        with pytest.raises(ConfigError, match=r"leak\.template: the policy's tokenizer has no tokens"):
            value_ids(fact(template=template), policy.tokenizer, "question")


def test_what_a_context_cannot_hold_is_cut_off_at_the_beginning() -> None:
    assert fitting((1, 2, 3, 4), 10, 7) == (2, 3, 4)
    assert fitting((1, 2), None, 7) == (1, 2)
    assert fitting((1, 2), 5, 9) == ()
    assert common_and_rest([(1, 2), (1, 3, 4)]) == ((1,), [(2,), (3, 4)])


# ------------------------------------------------------------------ the channel


def group(name: str, scores: list[float | None]) -> StoredGroup:
    prompt = Prompt(problem_id=name, text="q", token_ids=(1,))
    rollout = Rollout(
        prompt=prompt, token_ids=(2,), text="r", token_ends=(1,), sampler_logprobs=(-1.0,), finish_reason="stop"
    )
    judged = [Judgement(score=s) if s is not None else Judgement(score=None, status="error") for s in scores]
    reward = RolloutReward(value=0.5, length=1, judgements=tuple(judged))
    return StoredGroup(
        question=Question(problem_id=name, text="q"), domain="math", digest=None, rollouts=(rollout,), rewards=(reward,)
    )


def test_the_entropy_is_that_of_scipy_with_the_correction() -> None:
    counts = [5, 9, 1, 1]
    assert entropy(counts) == pytest.approx(stats.entropy(counts, base=2) + 3 / (2 * 16 * math.log(2)))
    assert entropy([4]) == 0


def test_a_channel_holds_what_its_judgements_say() -> None:
    channel = channel_of({1: [group("a", [1.0, 5.0]), group("b", [1.0])], 2: [group("a", [4.999, 5.0, 1.0])]}, {})
    assert channel.judgements == {"": {"a": 5, "b": 1}}
    assert channel.judgement_bits == {"": pytest.approx(1 + 1 / (2 * 6 * math.log(2)))}
    assert channel.bits("a") == pytest.approx(5 * channel.judgement_bits[""])
    assert channel.bits("never seen") == 0
    failing = channel_of({1: [group("a", [1.0, None])]}, {})
    assert failing.judgement_bits[""] > 1, "that a judgement failed says something"
    assert channel_of({}, {}).judgement_bits == {}


def test_what_decides_where_is_cut_is_in_the_channel() -> None:
    """Of four prefixes judged two end a segment: all four can have told something."""
    judged = tuple(Judgement(score=score) for score in (1.0, 1.0, 5.0, 5.0))
    reward = SegmentRewards(
        segments=(Segment(0, 3), Segment(3, 4)),
        values=(1.0, 1.0),
        judgements=judged[2:],
        curve=Curve(ends=(1, 2, 3, 4), judgements=judged),
    )
    channel = channel_of({1: [replace(group("a", []), rewards=(reward,))]}, {})
    assert channel.judgements == {"": {"a": 4}}
    assert channel.judgement_bits == {"": pytest.approx(entropy([2, 2]))}


def test_each_route_has_an_entropy_of_its_own() -> None:
    """A route that always says the same takes nothing away from what another one can tell."""

    def routed(name: str, scores: list[float | None], route: str) -> StoredGroup:
        return replace(group(name, scores), scorer=Scorer(reward="outcome", route=route))

    told, silent = (
        [routed("a", [1.0, 2.0, 3.0, 4.0], "domains.math")],
        [routed("b", [1.0] * 40, "domains.code")],
    )
    both = channel_of({1: [*told, *silent]}, {})
    assert both.bits("a") == channel_of({1: told}, {}).bits("a") == pytest.approx(4 * entropy([1, 1, 1, 1]))
    assert both.bits("b") == 0
    written = both.to_json(["a"])
    assert written["judgements"] == {"reward.domains.math": 4, "reward.domains.code": 40}
    assert written["bits"] == both.bits("a") + both.bits("b")


def test_judgements_are_booked_to_the_problem_whose_reference_was_read() -> None:
    channel = channel_of({1: [group("a", [1.0, 5.0])]}, {"a": "b", "b": "a"})
    assert channel.bits("a") == 0
    assert channel.bits("b") == pytest.approx(2 * entropy([1, 1]))


@pytest.mark.parametrize("name", ["wrong_reference", "reference_steps"])
def test_a_reward_says_whose_scaffold_its_judge_is_shown(name: str) -> None:
    problems = [
        replace(problem, domain=domain)
        for domain in ("math", "code")
        for problem in ChainSource(steps=3, count=8, seed=len(domain)).load()
    ]
    problems = [replace(problem, question=replace(problem.question, problem_id=str(number)))
                for number, problem in enumerate(problems)]  # fmt: skip
    judge = {"name": "wrong_reference", "around": {"name": "reference_steps"}} if "wrong" in name else {"name": name}
    given = {"name": "by_domain", "domains": {"math": {"name": "outcome", "judge": judge}}}
    choice = validate_choice(REWARDS, {**given, "default": {"name": "outcome", "judge": judge}}, "reward")
    found = choice.cls.graded_by(choice.config, problems, 7)
    reward = choice.build(Resources(problems=problems, seed=7))
    for problem, source in zip(problems, found, strict=True):
        [(_, scorer, _)] = reward.scorers([problem])
        shown = scorer.judge.shown(problem) if "wrong" in name else problem
        assert shown.scaffold is source.scaffold
        assert source.domain == problem.domain
        assert (source is problem) == (name == "reference_steps")


def test_rollouts_that_are_cut_elsewhere_are_compared_prefix_by_prefix() -> None:
    def rewarded(cut: int, scores: tuple[float, ...]) -> SegmentRewards:
        judged = tuple(Judgement(score=score) for score in scores)
        ends = (2, 4, 6)
        own = (judged[ends.index(cut)], judged[-1])
        curve = Curve(ends=ends, judgements=judged)
        return SegmentRewards(
            segments=(Segment(0, cut), Segment(cut, 6)), values=(0.0, 0.0), judgements=own, curve=curve
        )

    pairs = pairs_of(rewarded(2, (1.0, 3.0, 5.0)), rewarded(4, (1.0, 4.0, 5.0)))
    assert [differ(*pair) for pair in pairs] == [False, True, False]
    whole = SegmentRewards(segments=(Segment(0, 6),), values=(0.0,), judgements=(Judgement(score=5.0),))
    halves = SegmentRewards(
        segments=(Segment(0, 3), Segment(3, 6)), values=(0.0, 0.0), judgements=(Judgement(score=5.0),) * 2
    )
    assert [differ(*pair) for pair in pairs_of(whole, halves)] == [True, False], "one that was not asked is another"


def test_a_score_moves_where_a_rollout_wrote_the_number_and_nowhere_else() -> None:
    canary = fact()
    reward = OutcomeReward(judge=ReferenceStepsJudge())
    assert canary.problem.scaffold.reference is not None
    whole = canary.problem.scaffold.reference.reveal()
    silent = ChainSource(steps=3, count=1).load()[0].scaffold.reference
    assert silent is not None
    prompt = Prompt(problem_id=canary.problem.id, text="q", token_ids=(1,))
    rollouts = tuple(
        Rollout(prompt=prompt, token_ids=(2,), text=text, token_ends=(len(text),), sampler_logprobs=(-1.0,),
                finish_reason="stop")
        for text in (whole, silent.reveal(), "p+0 ")
    )  # fmt: skip
    [rewards] = reward.score([RolloutGroup(problem=canary.problem, rollouts=rollouts)])
    stored = replace(group(canary.problem.id, []), rollouts=rollouts, rewards=tuple(rewards))
    found = regraded([stored], {canary.problem.id: canary.decoy}, reward, {canary.problem.id: canary.problem.id})
    assert found == Regraded(compared={canary.problem.id: 3}, moved={canary.problem.id: 1})
    both = found + Regraded(compared={"other": 2}, moved={"other": 0})
    assert both.compared == {canary.problem.id: 3, "other": 2}
    row, _ = rows_of("runs/rl", [replace(facts(), regraded=both)])
    assert COLUMNS["scores moved"](row) == "1 of 5"
    assert list(told_of(replace(facts(), regraded=both)))[-1] == "1 of 5 judgements would be others with another number"


# ------------------------------------------------------------------ what is kept and shown


def measured(policy: str, rank: float, problem: str = "p", context: str = "question") -> Measured:
    return Measured(
        run="r", policy=policy, context=context, problem_id=problem, values=1024, rank=rank, control_rank=512,  # type: ignore[arg-type]
        logprob=-1.0,
    )  # fmt: skip


def facts(name: str = "runs/sft") -> Facts:
    both = [(c, p) for p in ("p", "q") for c in CONTEXTS]
    return Facts(
        run=name,
        method="sft",
        steps=4,
        planted=3,
        visits={"p": 2, "q": 1},
        values=1024,
        initial=[measured("initial", 256, p, c) for c, p in both],
        trained=[measured("trained", 1 if p == "p" else 4, p, c) for c, p in both],
        channel=None,
    )


def test_a_row_has_the_mean_exposure_and_what_was_gained() -> None:
    row: Row
    row, behind_reference = rows_of("runs/sft", [facts()])
    assert (row.context, behind_reference.context) == CONTEXTS
    assert (row.initial.mean, row.trained.mean, row.gained.mean, row.control.mean) == (2.0, 9.0, 7.0, 1.0)
    assert (row.first, row.reached, row.planted, row.score_bits) == (1, 2, 3, None)
    shown = [cell(row) for cell in COLUMNS.values()]
    assert shown[:3] == ["sft: runs/sft", "question", "2 of 3"]
    assert shown[-3:] == ["1 of 2", "–", "–"]
    assert list(told_of(facts())) == ["its 4 steps came by 2 of 3 facts, 1 to 2 times each"]
    assert "of 10.00 for certain (1024 values), 1.44 by chance" in markdown([row])
    [both, _] = rows_of("runs", [facts("runs/a"), facts("runs/b")])
    assert (both.reached, both.planted, both.runs) == (4, 6, 2)


def test_what_is_measured_is_read_back_and_half_a_line_is_not(tmp_path: Path) -> None:
    log = Log(tmp_path / "measured.jsonl")
    log.add([measured("initial", 3), measured("trained", 2)])
    with log.path.open("a") as file:
        file.write('{"run": "r", "pol')
    again = Log(tmp_path / "measured.jsonl")
    assert again.found == log.found
    log.path.write_text('{"other": 1}\n')
    with pytest.raises(DataError, match="another version"):
        Log(log.path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("rank", 0, "rank: must be 1 to 1024"),
        ("rank", 1025, "rank: must be 1 to 1024"),
        ("rank", None, "rank: must be 1 to 1024"),
        ("control_rank", "x", "control_rank: must be 1 to 1024"),
        ("values", 0, "values: must be a count from 2 on"),
        ("logprob", "x", "logprob: must be a number"),
        ("policy", "x", "policy: must be initial or trained"),
        ("context", None, "context: must be question or reference"),
        ("run", 3, "run, problem_id: must be text"),
    ],
)
def test_a_line_that_cannot_have_been_measured_is_named(tmp_path: Path, name: str, value: Any, said: str) -> None:
    path = tmp_path / "measured.jsonl"
    Log(path).add([measured("initial", 3)])
    damaged = {**json.loads(path.read_text()), name: value}
    path.write_text(path.read_text() + json.dumps(damaged) + "\n")
    with pytest.raises(DataError) as raised:
        Log(path)
    assert str(raised.value).startswith(f"{path}, line 2, is damaged or of another version of exprl ({said})")
    assert str(raised.value).endswith("Delete that line, or the file, to have it measured anew.")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"moved": {"a": "x"}}, "moved: must be counts"),
        ({"moved": "x"}, "moved: must be counts"),
        ({"moved": {"a": 3}}, "moved: must be at most compared"),
        ({"moved": {"b": 1}}, "moved: must be counts of the same problems as compared"),
        ({"compared": {"a": None}}, "compared: must be counts"),
        ({"step": "1"}, "step: must be a number of steps"),
        ({"run": None}, "run: must be text"),
        ({"judgements": {}}, "unexpected keyword argument 'judgements'"),
    ],
)
def test_a_line_of_what_was_graded_again_is_named_as_well(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    path = tmp_path / "regraded.jsonl"
    grades = Grades(path)
    grades.add("r", 1, Regraded(compared={"a": 2}, moved={"a": 1}))
    assert Grades(path).found == grades.found
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}) + "\n")
    with pytest.raises(DataError, match=r"regraded\.jsonl, line 1, is damaged or of another version") as raised:
        Grades(path)
    assert said in str(raised.value)
