"""Judges on real models: what they compute and what they refuse."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch

from exprl.config import validate_choice
from exprl.engines.ends import Ends
from exprl.errors import ConfigError, JudgeError
from exprl.judges import (
    ReferenceJudge,
    ReferenceStepsJudge,
    SameModelJudge,
    SmallerModelJudge,
    WrongReferenceJudge,
)
from exprl.judges.backends.base import JudgeBackend, Reply
from exprl.judges.backends.local_model import batches_by_length
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.backends.tree_forward import understands_trees
from exprl.judges.cache import key_of
from exprl.judges.llm import UnaidedJudge
from exprl.judges.prompting import JudgePrompt, Piece
from exprl.judges.reference_steps import steps_reached
from exprl.judges.scoring import expected_score, judgement_of
from exprl.judges.verdict import REPLY_START
from exprl.models.base import LanguageModel
from exprl.registry import JUDGES, REWARDS
from exprl.resources import Resources
from exprl.terminal.progress import no_progress
from exprl.types import Hidden, JudgeRequest, Problem, Question, Scaffold
from tests.conftest import character_tokenizer
from tests.families import miniature

NAN = float("nan")


def problem(problem_id: str, text: str = "What is 2 + 3?", reference: str | None = "2 + 3 = 5", steps=None) -> Problem:
    return Problem(
        question=Question(problem_id=problem_id, text=text),
        scaffold=Scaffold(
            reference=None if reference is None else Hidden(reference), steps=None if steps is None else Hidden(steps)
        ),
    )


def backend(language_model: LanguageModel, **options) -> TransformersBackend:
    share = options.pop("share_prefixes", True)
    return TransformersBackend(**options, language_model=language_model, share_prefixes=share)


def nested_requests() -> list[JudgeRequest]:
    """Prefixes of two rollouts for each of two problems, in an order that is not sorted."""
    problems = [problem("a"), problem("b", "Name a prime above 10.", "11 has no divisor but 1 and itself.")]
    requests = [
        JudgeRequest(
            problem=p, trace="".join(f"\n### Step {k}: {k * r} is next." for k in range(1, last)), view="prefix"
        )
        for r in (3, 8)
        for p in problems
        for last in (4, 2, 3)
    ]
    return requests + requests[:1]


def scores(judgements) -> list[float]:
    """To compare: what a weight's place in memory changes lies in the last bits."""
    return pytest.approx([judgement.score for judgement in judgements], abs=1e-5)


# ------------------------------------------------------------------ expected score


def test_expected_score_is_the_models_own_softmax(smollm2):
    judge = SameModelJudge(weights="frozen", backend=backend(smollm2))
    [judgement] = judge.judge([JudgeRequest(problem=problem("a"), trace="2 + 3 is 6.")])
    message = judge.prompt_for(JudgeRequest(problem=problem("a"), trace="2 + 3 is 6.")).message
    templated = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    ids = smollm2.tokenizer(templated + REPLY_START, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        probabilities = smollm2.model(input_ids=ids).logits[0, -1].double().softmax(-1)
    five = [float(probabilities[smollm2.tokenizer.convert_tokens_to_ids(str(score))]) for score in range(1, 6)]
    assert judgement.score == pytest.approx(sum(i * p for i, p in enumerate(five, 1)) / sum(five), abs=1e-4)
    assert judgement.status == "ok"


@pytest.mark.parametrize("share_prefixes", [True, False])
@pytest.mark.parametrize(("family", "dtype"), [("gpt_neox", "float16"), ("llama", "float16"), ("llama", "bfloat16")])
def test_a_judge_of_16_bits_is_computed_in_its_own_precision_beside_a_policy_in_mixed_precision(
    family, dtype, share_prefixes
):
    model = miniature(family)
    own = LanguageModel(model=model.to(getattr(torch, dtype)), tokenizer=character_tokenizer(), name=family)
    asked = [JudgePrompt((Piece(text),)) for text in ("one", "one and two", "three")]
    alone, beside = [], []
    for found, mixed in ((alone, False), (beside, True)):
        judge = backend(own, share_prefixes=share_prefixes)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            found += judge.complete(asked, 12, no_progress)
            found += judge.label_probabilities(asked, ("1", "2"), "", no_progress)
    assert beside == alone


def test_expected_score_by_hand():
    assert expected_score([0.1, 0.0, 0.0, 0.0, 0.3]) == pytest.approx(4.0)
    assert expected_score([0.0, 0.0, 0.0, 0.0, 1e-9]) == 5.0


class Canned(JudgeBackend):
    """A backend whose replies are given: stands at the network's edge to inject faults."""

    def __init__(self, *replies: Reply, room: tuple[int, int | None] = (10, None)) -> None:
        super().__init__()
        self.replies, self._room = list(replies), room

    identity = "canned"

    @classmethod
    def open(cls, config, model, resources):
        raise NotImplementedError

    def run(self, queries, on_progress):
        return self.replies

    def room(self, prompt):
        return self._room


def test_failures_keep_their_status_and_their_reply():
    canned = Canned(
        Reply(text="late", status="timeout"),
        Reply(text="boom", status="error"),
        Reply(text=" \n"),
        Reply(text="I would rather not say.", finished=True),
        Reply(text="The steps hold. Level: 4", finished=True),
        Reply(text="Level: 4\nA level of"),
    )
    judgements = [judgement_of(reply, "rationale", 0.01) for reply in canned.replies]
    expected = ["timeout", "error", "empty", "unparseable", "ok", "unparseable"]
    assert [judgement.status for judgement in judgements] == expected
    assert [judgement.score for judgement in judgements] == [None, None, None, None, 4.0, None]
    assert judgements[3].rationale == "I would rather not say."
    assert "cut off" in judgements[5].rationale


def test_too_little_mass_on_the_scores_is_unparseable():
    canned = Canned(
        Reply(probabilities=(0.001, 0, 0, 0, 0.001)),
        Reply(probabilities=(0, 0, 0, 0, 0)),
        Reply(probabilities=(0.02, 0, 0, 0, 0.06)),
        Reply(status="error", text="boom"),
    )
    judgements = [judgement_of(reply, "expected", 0.01) for reply in canned.replies]
    assert [judgement.status for judgement in judgements] == ["unparseable", "unparseable", "ok", "error"]
    assert judgements[2].score == pytest.approx(4.0)
    assert "less than min_mass 0.01" in judgements[0].rationale
    assert judgement_of(canned.replies[1], "expected", 0.0).status == "unparseable", "nothing to divide by"


@pytest.mark.parametrize(
    "probabilities",
    [
        (NAN,) * 5,
        (0.1, 0.1, NAN, 0.1, 0.1),
        (float("inf"), 0, 0, 0, 0),
        (-0.1, 0.5, 0, 0, 0),
        (0.9, 0.9, 0, 0, 0),
        (),
        (1.0,),
    ],
)
def test_what_is_no_probability_is_no_score(probabilities):
    judgement = judgement_of(Reply(probabilities=probabilities), "expected", 0.01)
    assert (judgement.status, judgement.score) == ("error", None)


def test_a_model_that_computes_nan_fails_its_judgements(tiny):
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        model.lm_head.weight.fill_(NAN)
    ill = LanguageModel(model=model, tokenizer=tiny.tokenizer, name="ill")
    for scoring in ("expected", "rationale"):
        config = SameModelJudge.Config(weights="frozen", scoring=scoring, max_new_tokens=4)
        judgements = SameModelJudge.made(config, backend=backend(ill)).judge(nested_requests()[:3])
        assert all(judgement.status in ("error", "unparseable", "empty") for judgement in judgements)


class Repaired(Canned):
    """Answers garbage with HTTP 200 until it is repaired."""

    registered_name = "repaired"

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.good = 0, False

    def run(self, queries, on_progress):
        self.asked += len(queries)
        text = "Level: 4" if self.good else "Level: 4 out of 10"
        return [Reply(text=text, finished=True) for _ in queries]


def test_only_what_was_parsed_is_kept_and_what_failed_is_asked_again():
    canned = Repaired()
    config = SameModelJudge.Config(weights="frozen", scoring="rationale")
    judge = SameModelJudge.made(config, backend=canned)
    requests = nested_requests()[:3]
    assert [j.status for j in judge.judge(requests)] == ["unparseable"] * 3
    assert judge.state_dict()["judgements"] == {}
    canned.good = True
    assert [j.score for j in judge.judge(requests)] == [4.0] * 3
    assert [j.score for j in judge.judge(requests)] == [4.0] * 3
    assert canned.asked == 6
    again = SameModelJudge.made(config, backend=canned)
    again.load_state_dict(pickle.loads(pickle.dumps(judge.state_dict())))
    assert [j.score for j in again.judge(requests)] == [4.0] * 3
    assert canned.asked == 6


def test_replies_in_a_checkpoint_from_before_are_asked_for_again():
    canned = Repaired()
    judge = SameModelJudge(weights="frozen", scoring="rationale", backend=canned)
    request = nested_requests()[0]
    old = {"text": "Level: 4 out of 10", "status": "ok", "probabilities": ()}
    judge.load_state_dict({"replies": {key_of("canned", judge.query(request)): old}, "updates": 0})
    canned.good = True
    assert judge.judge([request])[0].score == 4.0
    assert canned.asked == 1


def test_a_backend_that_answers_too_little_or_too_much_is_named():
    judge = SameModelJudge(weights="frozen", backend=Canned(Reply(), Reply()))
    judge.backend.registered_name = "canned"
    with pytest.raises(JudgeError, match="judge backend 'canned' returned 2 for 3 requests"):
        judge.judge(nested_requests()[:3])


# ------------------------------------------------------------------ the Hugging Face backend


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_sharing_beginnings_changes_no_probability(tiny, implementation):
    model = copy.deepcopy(tiny.model)
    model.set_attn_implementation(implementation)
    judge = SameModelJudge(weights="frozen", backend=Canned())
    prompts = [judge.prompt_for(request) for request in nested_requests()]
    labels = ["1", "2", "3", "4", "5"]
    model_of = LanguageModel(model=model, tokenizer=tiny.tokenizer, name="tiny")
    alone = [backend(model_of).label_probabilities([p], labels, REPLY_START, no_progress)[0] for p in prompts]
    for options in (
        {},
        {"batch_tokens": 1},
        {"batch_size": 5},
        {"share_prefixes": False},
        {"share_prefixes": False, "batch_size": 4},
    ):
        together = backend(model_of, **options).label_probabilities(prompts, labels, REPLY_START, no_progress)
        for one, many in zip(alone, together, strict=True):
            assert many.probabilities == pytest.approx(one.probabilities, abs=1e-5)


def test_sharing_beginnings_changes_no_probability_of_a_real_model(smollm2):
    judge = SameModelJudge(weights="frozen", backend=backend(smollm2))
    plain = SameModelJudge.made(judge.config, backend=backend(smollm2, share_prefixes=False))
    requests = nested_requests()[:4]
    for one, other in zip(judge.judge(requests), plain.judge(requests), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_sharing_beginnings_changes_no_reply(tiny):
    judge = SameModelJudge(weights="frozen", backend=Canned())
    prompts = [judge.prompt_for(request) for request in nested_requests()]
    replies = [
        [reply.text for reply in backend(tiny, **options).complete(prompts, 30, no_progress)]
        for options in ({}, {"batch_size": 3}, {"share_prefixes": False}, {"batch_tokens": 1})
    ]
    assert replies[0] == replies[1] == replies[2] == replies[3]
    assert len(set(replies[0])) > 3
    tokens = backend(tiny).tokens.encode(prompts[0])
    greedy = tiny.model.generate(torch.tensor([tokens]), max_new_tokens=30, do_sample=False)[0, len(tokens) :]
    assert replies[0][0] == tiny.tokenizer.decode(greedy, skip_special_tokens=True)


def test_rationales_of_a_real_model(smollm2):
    config = SameModelJudge.Config(weights="frozen", scoring="rationale", max_new_tokens=8)
    judgements = SameModelJudge.made(config, backend=backend(smollm2)).judge(nested_requests()[:2])
    assert all(judgement.rationale for judgement in judgements)
    assert all(judgement.status in ("ok", "unparseable") for judgement in judgements)


def test_progress_is_reported_for_every_request(tiny):
    done: list[int] = []
    judge = SameModelJudge(weights="frozen", backend=backend(tiny, batch_size=4))
    judge.judge(nested_requests(), done.append)
    assert sum(done) == 13
    assert len(done) >= 4
    assert judge.judge([]) == []


def test_too_long_requests_fail_alone(tiny):
    requests = [
        JudgeRequest(problem=problem("a"), trace="so " * 20),
        JudgeRequest(problem=problem("a"), trace="so " * 2000),
    ]
    for scoring in ("expected", "rationale"):
        config = SameModelJudge.Config(weights="frozen", scoring=scoring, max_new_tokens=5, min_mass=0)
        short, long = SameModelJudge.made(config, backend=backend(tiny)).judge(requests)
        assert short.status != "error"
        assert long.status == "error"
        assert "exceeds the judge's context of 4096" in long.rationale


def test_check_names_the_problem_whose_reference_leaves_no_room(tiny):
    judge = SameModelJudge(weights="frozen", backend=backend(tiny))
    judge.check([problem("fits")])
    with pytest.raises(JudgeError, match=r"'huge'.* tokens before any attempt.*context of 4096"):
        judge.check([problem("fits"), problem("huge", reference="long " * 1000)])
    with pytest.raises(JudgeError, match="'none' has no reference"):
        judge.check([problem("none", reference=None)])
    with pytest.raises(JudgeError, match="'none' has no reference"):
        judge.judge([JudgeRequest(problem=problem("none", reference=None), trace="x")])


def test_batches_of_like_length():
    sequences = [[0] * length for length in (9, 1, 8, 2, 2)]
    assert batches_by_length(sequences, max_tokens=16, max_rows=64) == [[1, 3, 4], [2], [0]]
    assert batches_by_length(sequences, max_tokens=1000, max_rows=2) == [[1, 3], [4, 2], [0]]
    assert batches_by_length(sequences, max_tokens=1, max_rows=2) == [[1], [3], [4], [2], [0]]


def test_models_with_windows_or_foreign_kernels_get_no_trees(tiny):
    model = copy.deepcopy(tiny.model)
    assert understands_trees(model)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert not understands_trees(model)
    model.config.layer_types = None
    model.config.sliding_window = 128
    assert not understands_trees(model)
    model.config.sliding_window = None
    model.config._attn_implementation = "flash_attention_2"
    assert not understands_trees(model)


def test_ends_without_a_text_test_end_no_row():
    assert Ends(token_ids=frozenset()).ends_text([[1], [2]]) == [False, False]


# ------------------------------------------------------------------ whose model


def test_weights_must_be_chosen():
    with pytest.raises(ConfigError, match="weights: required"):
        validate_choice(JUDGES, {"name": "same_model"}, "reward.judge")


@pytest.mark.parametrize("option", [{"cache_size": -1}, {"max_new_tokens": 0}, {"min_mass": 1.5}])
def test_options_out_of_range(option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        validate_choice(JUDGES, {"name": "same_model", "weights": "frozen", **option}, "judge")


def test_frozen_shares_the_reference_model_and_live_follows_the_policy(tiny):
    frozen = LanguageModel(model=copy.deepcopy(tiny.model), tokenizer=tiny.tokenizer, name="frozen")
    policy = LanguageModel(model=copy.deepcopy(tiny.model).train(), tokenizer=tiny.tokenizer, name="policy")
    resources = Resources(policy=policy, initial_policy=lambda: frozen)
    requests = nested_requests()[:3]
    judges = {
        weights: JUDGES.get("same_model").from_config(SameModelJudge.Config(weights=weights, min_mass=0), resources)
        for weights in ("frozen", "live")
    }
    before = {weights: judge.judge(requests) for weights, judge in judges.items()}
    assert [j.score for j in before["frozen"]] == scores(before["live"])
    assert policy.model.training
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(-1)
    judges["live"].sync()
    assert [j.score for j in judges["frozen"].judge(requests)] == scores(before["frozen"])
    assert [j.score for j in judges["live"].judge(requests)] != scores(before["live"])
    assert all(weight.grad is None for weight in policy.model.parameters())


def test_outside_a_run_the_error_says_what_to_pass():
    with pytest.raises(ConfigError, match="judge 'same_model' needs the frozen initial policy"):
        validate_choice(JUDGES, {"name": "same_model", "weights": "frozen"}, "judge").build(Resources())
    with pytest.raises(ConfigError, match="needs the policy model"):
        validate_choice(JUDGES, {"name": "same_model", "weights": "live"}, "judge").build(Resources())


@pytest.fixture
def folder(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path / "judge")
    tiny.tokenizer.save_pretrained(tmp_path / "judge")
    return str(tmp_path / "judge")


def test_smaller_model_loads_its_own(tiny, folder):
    node = {"name": "smaller_model", "model": {"name": "pretrained", "path": folder}, "min_mass": 0.0}
    judge = validate_choice(JUDGES, node, "judge").build(Resources(policy=tiny))
    assert isinstance(judge, SmallerModelJudge)
    same = SameModelJudge(weights="frozen", min_mass=0.0, backend=backend(tiny))
    requests = nested_requests()[:3]
    assert [j.score for j in judge.judge(requests)] == scores(same.judge(requests))
    assert not any(weight.requires_grad for weight in judge.backend.language_model.model.parameters())
    with pytest.raises(ConfigError, match="model: required"):
        validate_choice(JUDGES, {"name": "smaller_model"}, "judge")


def test_judges_of_one_run_that_name_the_same_model_load_it_once(folder):
    node = {"name": "smaller_model", "model": {"name": "pretrained", "path": str(folder), "dtype": "float32"}}
    routes = {"science": {"name": "outcome", "judge": {**node, "prompt": "science"}}}
    reward = {"name": "by_domain", "domains": routes, "default": {"name": "outcome", "judge": node}}
    built = validate_choice(REWARDS, reward, "reward").build(Resources())
    models = [one.judge.backend.language_model for one in (built.default, built.domains["science"])]
    assert models[0] is models[1]
    alone = validate_choice(JUDGES, node, "judge").build(Resources())
    assert alone.backend.language_model is not models[0]


@pytest.mark.parametrize("given", [{}, {"model": None}])
def test_smaller_model_needs_its_own_in_code_too(given):
    with pytest.raises(ConfigError, match=r"^model: "):
        SmallerModelJudge.Config(**given)


# ------------------------------------------------------------------ no reference


def around(name: str, inner: dict[str, object], resources: Resources):
    """The wrapper `name` around a judge, built."""
    return validate_choice(JUDGES, {"name": name, "around": inner}, "judge").build(resources)


def test_no_reference_asks_whichever_model_stood_there(tiny, folder):
    own = {"name": "smaller_model", "model": {"name": "pretrained", "path": folder}, "min_mass": 0.0}
    policy = {"name": "same_model", "weights": "frozen", "min_mass": 0.0}
    of_its_own = around("no_reference", own, Resources())
    of_the_run = around("no_reference", policy, Resources(policy=tiny, initial_policy=lambda: tiny))
    requests = [JudgeRequest(problem=problem("n", reference=None), trace="x")]
    of_its_own.check([requests[0].problem])
    unaided = UnaidedJudge(min_mass=0.0, backend=backend(tiny))
    assert [j.score for j in of_its_own.judge(requests)] == scores(unaided.judge(requests))
    assert [j.score for j in of_the_run.judge(requests)] == scores(unaided.judge(requests))


# ------------------------------------------------------------------ wrong reference

NUMBERED = [problem(f"p{k}", f"question {k}", f"step {k}\nAnswer: {k}") for k in range(6)]


def test_everyone_gets_another_ones_scaffold_always_the_same():
    judge = WrongReferenceJudge(around=ReferenceStepsJudge(), problems=NUMBERED, seed=3)
    donors = {p.id: judge.shown(p).scaffold.reference.reveal() for p in NUMBERED}
    assert sorted(donors.values()) == sorted(p.scaffold.reference.reveal() for p in NUMBERED)
    for p in NUMBERED:
        assert donors[p.id] != p.scaffold.reference.reveal()
        assert judge.shown(p).question == p.question
    again = WrongReferenceJudge(around=ReferenceStepsJudge(), problems=NUMBERED, seed=3)
    other = WrongReferenceJudge(around=ReferenceStepsJudge(), problems=NUMBERED, seed=4)
    assert {p.id: again.shown(p).scaffold.reference.reveal() for p in NUMBERED} == donors
    assert {p.id: other.shown(p).scaffold.reference.reveal() for p in NUMBERED} != donors
    stranger = problem("stranger", reference=None)
    assert judge.shown(stranger) == judge.shown(stranger)
    assert judge.shown(stranger).scaffold.reference is not None


def test_two_problems_with_references_are_needed():
    with pytest.raises(JudgeError, match="at least 2 different references to swap, but got 1 problem with 1"):
        WrongReferenceJudge(around=ReferenceStepsJudge(), problems=[NUMBERED[0], problem("x", reference=None)])


def test_equal_references_are_never_handed_back():
    """Two problems in three share a solution, written a little differently; also one from elsewhere has it."""
    shared = ["step 1\nAnswer: 1", " Step  1\nanswer: 1 ", "step 1\u200b\nAnswer:\u00a01"]
    problems = [problem(f"p{k}", f"question {k}", shared[k % 3] if k % 3 else f"other {k}") for k in range(12)]
    for seed in range(5):
        judge = WrongReferenceJudge(around=ReferenceStepsJudge(), problems=problems, seed=seed)
        for p in [*problems, problem("stranger", reference=shared[0])]:
            given = judge.shown(p).scaffold.reference.reveal()
            assert "".join(given.split()).lower() != "".join(p.scaffold.reference.reveal().split()).lower()
            assert given.startswith("other") or not p.scaffold.reference.reveal().strip().lower().startswith("step")


def test_references_that_are_all_one_are_refused_at_once():
    with pytest.raises(JudgeError, match="at least 2 different references to swap, but got 3 problems with 1"):
        WrongReferenceJudge(
            around=ReferenceStepsJudge(), problems=[problem(f"p{k}", reference=" Same. ") for k in range(3)]
        )


def test_the_steps_of_the_wrong_reference():
    judge = around("wrong_reference", {"name": "reference_steps"}, Resources(problems=NUMBERED))
    judge.check(NUMBERED)
    right = [JudgeRequest(problem=p, trace=p.scaffold.reference.reveal()) for p in NUMBERED]
    wrong = [JudgeRequest(problem=p, trace=judge.shown(p).scaffold.reference.reveal()) for p in NUMBERED]
    assert [judgement.score for judgement in ReferenceStepsJudge().judge(right)] == [5.0] * 6
    assert [judgement.score for judgement in judge.judge(right)] == [1.0] * 6
    assert [judgement.score for judgement in judge.judge(wrong)] == [5.0] * 6
    judge.sync()


def test_the_language_model_sees_the_wrong_reference_only(tiny, folder):
    resources = Resources(policy=tiny, initial_policy=lambda: tiny, problems=NUMBERED)
    judge = around("wrong_reference", {"name": "same_model", "weights": "frozen", "min_mass": 0.0}, resources)
    message = judge.around.prompt_for(JudgeRequest(problem=judge.shown(NUMBERED[0]), trace="t")).message
    assert "question 0" in message
    assert "step 0" not in message
    assert re_step(message) in {f"step {k}" for k in range(1, 6)}
    direct = ReferenceJudge.made(judge.around.config, backend=backend(tiny))
    requests = [JudgeRequest(problem=p, trace="step") for p in NUMBERED]
    manual = [JudgeRequest(problem=judge.shown(p), trace="step") for p in NUMBERED]
    assert [j.score for j in judge.judge(requests)] == scores(direct.judge(manual))
    own = {"name": "smaller_model", "min_mass": 0.0, "model": {"name": "pretrained", "path": folder}}
    other = around("wrong_reference", own, resources)
    assert [j.score for j in other.judge(requests)] == scores(direct.judge(manual))


def re_step(message: str) -> str:
    reference = message.split("<reference>\n")[1]
    return reference.splitlines()[0]


# ------------------------------------------------------------------ checkpoint

STEPS = ("a=5", "b = 55", "c=7")


@pytest.mark.parametrize(
    ("trace", "strict", "loose"),
    [
        ("", 0, 0),
        ("a=5", 1, 1),
        ("a=5\nb = 55\nc=7", 3, 3),
        ("a=5\n\n  b =  55 \nc=7\nAnswer: 7", 3, 3),
        ("a=5\nb = 5", 1, 1),
        ("a=5\nb = 555", 1, 1),
        ("a=5\nb = 54\nb = 55", 1, 2),  # the second guess does not count when strict
        ("b = 55\na=5", 1, 1),
        ("Let a=5, so b = 55 and c=7.", 0, 3),
        ("aa=5\n", 0, 0),
        ("a=5\nc=7", 1, 1),
        ("a=5\na=5\nb = 55", 2, 2),
        ("a=5\nq = 8\nb = 55\nq = 9\nc=7", 3, 3),  # lines on which the reference is silent are passed over
        ("a=5\nb = 55 or so", 1, 2),
    ],
)
def test_steps_reached_by_hand(trace, strict, loose):
    assert steps_reached(trace, STEPS, strict=True) == strict
    assert steps_reached(trace, STEPS, strict=False) == loose


def test_a_step_is_searched_for_behind_the_last():
    assert steps_reached("7 then 5", ["5", "7"], strict=False) == 1
    assert steps_reached("5 5", ["5", "5", "5"], strict=False) == 2


def test_checkpoint_scores():
    with_steps = problem("s", reference="prose", steps=("one", "two", "three", "four"))
    lines = problem("l", reference="one\n\ntwo\n")
    judge = ReferenceStepsJudge(strict=True)
    requests = [
        JudgeRequest(problem=with_steps, trace="one\ntwo\nthree\nfive"),
        JudgeRequest(problem=with_steps, trace="one\ntwo\nthree\nfour"),
        JudgeRequest(problem=lines, trace="one\n2"),
        JudgeRequest(problem=lines, trace="zero"),
    ]
    done: list[int] = []
    judgements = judge.judge(requests, done.append)
    assert [judgement.score for judgement in judgements] == [4.0, 5.0, 3.0, 1.0]
    assert judgements[0].rationale == "3 of 4 steps reached"
    assert sum(done) == 4
    loose = ReferenceStepsJudge(strict=False)
    assert loose.judge([JudgeRequest(problem=lines, trace="zero, one, then two")])[0].score == 5.0


def test_checkpoint_needs_a_step_to_reach():
    with pytest.raises(JudgeError, match="no reference solution"):
        ReferenceStepsJudge().check([problem("n", reference=None)])
    with pytest.raises(JudgeError, match=r"'blank': its reference has no step"):
        ReferenceStepsJudge().check([problem("ok"), problem("blank", reference=" \n")])


# ------------------------------------------------------------------ imports


def test_judges_and_rewards_import_nothing_heavy():
    code = (
        "import sys, exprl.judges, exprl.rewards; "
        "print([m for m in ('torch', 'transformers', 'lightning', 'vllm') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
