"""Recorded steps are those of the model: on a CPU by recordings that, like CUDA's, keep to the memory they saw."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from exprl.engines import TransformersEngine
from exprl.engines.prefill import Prefilled, prefill
from exprl.models.base import LanguageModel
from exprl.models.recorded import Compute, RecordedSteps, recording
from exprl.models.steps import Merged, ModelSteps, Steps
from tests.conftest import character_tokenizer
from tests.families import miniature
from tests.vllm.helpers import flat, prompt, sample, tokens

PROMPTS = [[3, 14, 15, 9, 26], [5, 35], [8, 9, 7, 9, 3, 2, 3, 8]]
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: records CUDA graphs")


class Tape(TorchDispatchMode):
    """Keeps every operation with the tensors it read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Everything again: from the same tensors into the same tensors, whatever they hold now."""
        for func, args, kwargs, result in self.calls:
            places = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() not in places:  # not a view, and not written in place
                    old.copy_(new)


class Recorder:
    """Records as CUDA does; counts its recordings."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, compute: Compute) -> Compute:
        self.count += 1
        with Tape() as tape:
            result = compute()

        def replay() -> Tensor:
            tape.replay()
            return result

        return replay


@torch.no_grad()
def both(model: PreTrainedModel, recorder: Callable[[Compute], Compute]) -> tuple[list[Steps], Prefilled]:
    read = [prefill(model, PROMPTS, 0) for _ in range(2)]
    return [ModelSteps(model, read[0].cache), RecordedSteps(Merged(model, 3), read[1].cache, recorder)], read[0]


def advanced(every: list[Steps], mask: Tensor, token: int) -> tuple[list[Tensor], Tensor]:
    """The logits of all after one more token, and the longer mask."""
    positions, longer = mask.sum(-1, keepdim=True), pad(mask, (0, 1), value=True)
    tokens = (torch.arange(len(mask), device=mask.device) * 7 + token)[:, None] % 100
    with torch.no_grad():
        return [one.advance(tokens, positions, None if bool(longer.all()) else longer) for one in every], longer


def same(every: list[Steps], mask: Tensor, token: int) -> Tensor:
    (expected, own), longer = advanced(every, mask, token)
    assert expected.std() > 0.1
    torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)
    return longer


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "granite"])
def test_logits_are_the_models_own_and_memory_that_is_replaced_is_recorded_anew(family: str) -> None:
    model, recorder = miniature(family), Recorder()
    every, read = both(model, recorder)
    mask = read.mask
    for token in range(60):
        mask = same(every, mask, token)
    assert recorder.count == 1
    for token in range(60, 80):  # past the room that a buffer begins with
        mask = same(every, mask, token)
    assert recorder.count == 2
    for one in every:
        one.select(torch.tensor([2, 0]))
    mask = same(every, same(every, mask[[2, 0]], 3), 4)
    assert recorder.count == 3
    arrived = prefill(model, [PROMPTS[1]], 0)
    for one in every:
        one.place(torch.tensor([0]), arrived.cache)
    mask = mask.clone()
    mask[0], mask[0, -2:] = False, True
    mask = same(every, same(every, mask, 4), 5)
    assert recorder.count == 3, "written into the same memory"
    empty = int(mask.any(0).int().argmax())
    assert empty > 0
    for one in every:
        one.trim(empty)
    mask = same(every, same(every, mask[:, empty:], 6), 7)
    long = prefill(model, [[4] * 120], 0)
    for one in every:
        one.place(torch.tensor([1]), long.cache)
    mask = pad(mask, (120 - mask.shape[1], 0), value=False)
    mask[1] = True
    same(every, same(every, mask, 8), 9)


def test_weights_that_change_are_recorded_anew() -> None:
    model, recorder = miniature("llama"), Recorder()
    every, read = both(model, recorder)
    mask = same(every, same(every, read.mask, 1), 2)
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    same(every, same(every, mask, 3), 4)
    assert recorder.count == 2


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_in_mixed_precision_they_are_as_close_to_float32_as_the_models(family: str) -> None:
    model = miniature(family)
    (exact, _), read = both(model, Recorder())
    with torch.autocast("cpu"):
        every, _ = both(model, Recorder())
        assert Merged(model, 3).current().head.weight.dtype == torch.bfloat16
    mask, gaps = read.mask, []
    for token in range(6):
        (expected,), longer = advanced([exact], mask, token)
        with torch.autocast("cpu"):
            found, mask = advanced(every, mask, token)
        assert torch.equal(mask, longer)
        gaps.append([float((one.float() - expected).abs().max()) for one in found])
    models, own = (max(column) for column in zip(*gaps, strict=True))
    assert 0 < own <= 2 * models


def test_what_cannot_be_recorded_goes_on_unrecorded_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def refused(compute: Compute) -> Compute:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    every, read = both(miniature("llama"), refused)
    mask = read.mask
    with caplog.at_level(logging.WARNING):
        for token in range(4):
            mask = same(every, mask, token)
    [said] = caplog.messages
    assert said.endswith("not recorded as CUDA graphs: operation not permitted when stream is capturing")


def test_a_replay_that_gives_other_logits_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    def wrong(compute: Compute) -> Compute:
        return lambda: compute() * 1.01

    every, read = both(miniature("llama"), wrong)
    with caplog.at_level(logging.WARNING):
        same(every, same(every, same(every, read.mask, 1), 2), 3)
    assert "a replay gave other logits" in caplog.text


def test_memory_that_runs_out_while_recording_is_told_as_such() -> None:
    def full(compute: Compute) -> Compute:
        raise torch.OutOfMemoryError("CUDA out of memory")

    every, read = both(miniature("llama"), full)
    with pytest.raises(torch.OutOfMemoryError):
        advanced(every[1:], read.mask, 1)


class Taped(TransformersEngine):
    """Records on a CPU."""

    def _continuing(self, rows: int) -> Any:
        weights = Merged(self.policy.model, rows)
        return lambda cache: RecordedSteps(weights, cache, Recorder())


def questions(policy: LanguageModel, count: int) -> list[Any]:
    return [prompt(policy.tokenizer, f"{'why ' * k}{k}?", str(k)) for k in range(count)]


def test_rollouts_are_the_same_while_rows_come_and_go() -> None:
    policy = LanguageModel(miniature("llama"), character_tokenizer(), name="llama")
    usual, taped = (kind(policy=policy, batch_size=5) for kind in (TransformersEngine, Taped))
    settings = {"n": 3, "max_new_tokens": 40, "seed": 3}
    expected = sample(usual, questions(policy, 6), **settings)
    assert len({len(rollout) for rollout in flat(expected)}) > 3
    assert tokens(sample(taped, questions(policy, 6), **settings)) == tokens(expected)


@ON_GPU
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_cuda_graphs_are_as_close_to_float32_as_the_models_own_steps(precision: torch.dtype | None) -> None:
    model = miniature("qwen3").cuda()
    (exact, _), read = both(model, recording)
    mixed = torch.autocast("cuda", dtype=precision, enabled=precision is not None)
    with mixed:
        every, _ = both(model, recording)
    mask, gaps = read.mask, []
    for token in range(80):
        (expected,), _ = advanced([exact], mask, token)
        with mixed:
            found, mask = advanced(every, mask, token)
        gaps.append([float((one.float() - expected).abs().max()) for one in found])
    models, own = (max(column) for column in zip(*gaps, strict=True))
    assert own <= 2 * models + 1e-4
    assert every[1]._replay is not None


@ON_GPU
def test_rollouts_with_cuda_graphs_are_those_without() -> None:
    policy = LanguageModel(miniature("llama").cuda(), character_tokenizer(), name="llama")
    usual, graphs = (TransformersEngine(policy=policy, batch_size=5, cuda_graphs=own) for own in (False, True))
    settings = {"n": 3, "max_new_tokens": 40, "seed": 3}
    expected = sample(usual, questions(policy, 6), **settings)
    assert tokens(sample(graphs, questions(policy, 6), **settings)) == tokens(expected)
