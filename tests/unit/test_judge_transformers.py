"""The judge's backend `transformers`: prompts that share beginnings, batches, lengths."""

from __future__ import annotations

import copy

import pytest
import torch

from exprl.engines.ends import Ends
from exprl.errors import JudgeError
from exprl.judges import (
    SameModelJudge,
)
from exprl.judges.backends.local_model import batches_by_length
from exprl.judges.backends.tree_forward import understands_trees
from exprl.judges.verdict import REPLY_START
from exprl.models.base import LanguageModel
from exprl.terminal.progress import no_progress
from exprl.types import JudgeRequest
from tests.judging import Canned, backend, nested_requests, problem


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
