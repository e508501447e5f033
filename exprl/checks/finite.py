"""Numbers that must be finite: one NaN, taken on, is in every weight after the next update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from exprl.errors import NonFiniteError
from exprl.types import RolloutGroup

_MODEL = (
    "The model itself gives it: check its weights (exprl evaluate), and set model.dtype and trainer.precision to what "
    "it was trained in (float16 overflows where bfloat16 and 32-true do not)."
)
_UPDATE = (
    "Try a smaller optimizer.lr, a longer optimizer.warmup_updates, a smaller optimizer.max_grad_norm, or "
    "trainer.precision=32-true."
)
_GO_ON = (
    "The last checkpoint stays as it was. --resume goes on from it as before; to go on with other options, start a new "
    "run from it: model.path=<this run_dir> run_dir=<another>."
)
QUANTITIES: dict[str, tuple[str, str]] = {
    "logp": ("log-prob under the policy", _MODEL),
    "old_logp": ("log-prob under the policy before the step", _MODEL),
    "initial_logp": ("log-prob under the frozen reference", _MODEL),
    "sampler_gap": ("gap between the engine's log-probs and the trainer's", _MODEL),
    "teacher_kl": ("KL to the teacher", _MODEL),
    "entropy": ("entropy of the policy", _MODEL),
    "loss": ("loss", _UPDATE),
    "grad_norm": ("norm of the gradient", _UPDATE),
    "weights": ("norm of the weights", _UPDATE),
    "sampled": ("log-prob that the engine gives", _MODEL),
}
"""What a quantity is called, and what to do about one that is not finite: those that cause others come first."""


def check_finite(values: Mapping[str, float], where: str) -> None:
    """Raise `NonFiniteError` naming the first of `QUANTITIES` (then any other) that is NaN or infinite."""
    order = [name for name in QUANTITIES if name in values] + [name for name in values if name not in QUANTITIES]
    for name in order:
        if not math.isfinite(values[name]):
            called, advice = QUANTITIES.get(name, (name, _UPDATE))
            raise NonFiniteError(f"{where}: the {called} is {values[name]}, so the run stops. {advice} {_GO_ON}")


def check_sampled(groups: Sequence[RolloutGroup], where: str) -> None:
    """Raise `NonFiniteError` naming the problem of a rollout with a log-prob that is not finite."""
    for group in groups:
        place = f"{where}: problem {group.problem.id!r}"
        check_finite({"sampled": _first(rollout.sampler_logprobs for rollout in group.rollouts)}, place)


def _first(rows: Iterable[Sequence[float]]) -> float:
    """The first number that is not finite, or 0."""
    return next((value for row in rows for value in row if not math.isfinite(value)), 0.0)
