"""From a judge's reply to a score: what a model computes, and what is no score."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from exprl.errors import JudgeError
from exprl.judges import (
    SameModelJudge,
)
from exprl.judges.backends.base import Reply
from exprl.judges.cache import key_of
from exprl.judges.prompting import JudgePrompt, Piece
from exprl.judges.scoring import expected_score, judgement_of
from exprl.judges.verdict import REPLY_START
from exprl.models.base import LanguageModel
from exprl.terminal.progress import no_progress
from exprl.types import JudgeRequest
from tests.conftest import character_tokenizer
from tests.families import miniature
from tests.judging import NAN, Canned, backend, nested_requests, problem


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
