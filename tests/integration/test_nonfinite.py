"""A number that is not finite stops a run before it is in the weights, and before a good checkpoint makes room."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exprl.errors import NonFiniteError

METHODS = {
    "rl": (),
    "sft": ("method.name=sft",),
    "sampled": ("method.name=self_distillation", "method.estimator=sampled"),
    "exact": ("method.name=self_distillation", "method.estimator=exact"),
}


def spoil_loss(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The loss of the update after `at` micro-batches is NaN."""
    from exprl.training.update import PolicyUpdate

    original, calls = PolicyUpdate.logprobs, []

    def logprobs(self: PolicyUpdate, model: Any, *args: Any, **options: Any) -> Any:
        found = original(self, model, *args, **options)
        if not options.get("entropy"):
            return found
        calls.append(1)
        return found._replace(logp=found.logp * (math.nan if len(calls) > at else 1.0))

    monkeypatch.setattr(PolicyUpdate, "logprobs", logprobs)


def spoil_gradient(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The gradient of the update after `at` others is infinite, though the loss is not."""
    from exprl.training import policy_module

    original, calls = policy_module.sum_gradients, []

    def sum_gradients(model: nn.Module, world: Any) -> None:
        original(model, world)
        calls.append(1)
        if len(calls) > at:
            next(p.grad for p in model.parameters() if p.grad is not None)[0] = math.inf

    monkeypatch.setattr(policy_module, "sum_gradients", sum_gradients)


def spoil_weights(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The optimizer's step after `at` others makes weights that are not finite of a gradient that is."""
    original, calls = torch.optim.AdamW.step, []

    def step(self: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
        result = original(self, *args, **options)
        calls.append(1)
        if len(calls) > at:
            self.param_groups[0]["params"][0].data[0] = math.nan
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


def policy_of(checkpoint: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


Spoil = Callable[[pytest.MonkeyPatch, int], None]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("spoil", "named"),
    [(spoil_loss, "loss|log-prob"), (spoil_gradient, "norm of the gradient"), (spoil_weights, "weights")],
    ids=["loss", "gradient", "weights"],
)
def test_the_run_stops_and_its_last_good_step_stays(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, spoil: Spoil, named: str
) -> None:
    options = (*METHODS[method], "evaluation.source=null", "trainer.checkpoint_every=1", "trainer.keep_checkpoints=1")
    if method == "rl":
        options += ("trainer.precision=bf16-mixed", "optimizer.max_grad_norm=1.0e9")
    spoil(monkeypatch, 2)
    with pytest.raises(NonFiniteError, match=rf"^step 3.*{named}"):
        run(small(*options, "update.micro_batch_tokens=100000"))
    assert [path.stem for path in (tmp_path / "run/checkpoints").glob("*.ckpt")] == ["step-000002"]
    state = policy_of(tmp_path / "run/checkpoints/step-000002.ckpt")
    assert all(tensor.isfinite().all() for tensor in state.values())
    monkeypatch.undo()
    assert run(small(*options, "update.micro_batch_tokens=100000"), resume=True)["steps"] == 4


def test_finished_steps_are_saved_when_the_next_one_cannot_be_made(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_gradient(monkeypatch, 2)
    with pytest.raises(NonFiniteError):
        run(small("evaluation.source=null", "trainer.checkpoint_every=0"))
    assert [path.stem for path in (tmp_path / "run/checkpoints").glob("*.ckpt")] == ["step-000002"]


def test_an_update_half_made_is_not_saved_as_the_step_before(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_gradient(monkeypatch, 3)  # the second of two updates of step 2
    with pytest.raises(NonFiniteError, match=r"^step 2"):
        run(small("evaluation.source=null", "trainer.checkpoint_every=0", "update.prompts_per_update=2"))
    assert not list((tmp_path / "run/checkpoints").glob("*.ckpt"))


def test_weights_that_something_else_lost_are_not_written(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exprl.training.policy_module import PolicyModule
    from exprl.training.step_log import StepLog

    def lose(self: StepLog, trainer: Any, module: PolicyModule, *_: Any) -> None:
        if module.steps_done == 2:
            next(module.policy.parameters()).data[0] = math.nan

    monkeypatch.setattr(StepLog, "on_train_batch_end", lose)
    with pytest.raises(NonFiniteError, match="the checkpoint of step 2: the norm of the weights is nan"):
        run(small("evaluation.source=null", "trainer.checkpoint_every=1", "trainer.keep_checkpoints=1"))
    assert [path.stem for path in (tmp_path / "run/checkpoints").glob("*.ckpt")] == ["step-000001"]


def test_a_model_that_gives_no_numbers_is_not_evaluated(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exprl.training.policy_module import PolicyModule

    original = PolicyModule.step_logged

    def step_logged(self: PolicyModule) -> None:
        self.policy.get_output_embeddings().weight.data.fill_(math.nan)
        original(self)

    monkeypatch.setattr(PolicyModule, "step_logged", step_logged)
    with pytest.raises(NonFiniteError, match=r"^evaluation: problem '.*': the log-prob that the engine gives is nan"):
        run(small("evaluation.every=1", "trainer.checkpoint_every=0"))
