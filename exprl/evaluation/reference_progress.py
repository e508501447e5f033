"""How far a trace follows the reference's own steps."""

from __future__ import annotations

from collections.abc import Sequence

from exprl.judges.reference_steps import steps_reached


def reference_progress(trace: str, steps: Sequence[str]) -> float:
    """Share in [0, 1] of the reference's `steps` that `trace` reaches in order, the first wrong line ending the count.

    Raises:
        ValueError: the reference has no steps.
    """
    if not steps:
        raise ValueError("progress needs a reference with at least one step")
    return steps_reached(trace, steps, strict=True) / len(steps)
