"""The difference of the engine's log-probs of sampled tokens and the trainer's at which a run stops."""

from __future__ import annotations

from exprl.errors import EngineError

STALE_GAP = 1.0
"""Mean difference, in nats, that rollouts of the policy before the last update may have: one moves it by a tenth.

What is wrong with an engine shows before: at the start, with the first rollouts, and by its canary at every sync.
"""


def check_gap(gap: float, allowed: float, *, tokens: int, step: str, stale: bool = False) -> None:
    """Raise `EngineError` where the mean absolute difference over an update's sampled tokens is too large.

    Args:
        gap: that difference; the trainer's log-probs are those before the step's first update.
        allowed: what precision explains.
        tokens: how many there are.
        step: the step, for messages.
        stale: whether they were sampled by an earlier policy, so that updates between are part of the difference.
    """
    limit = max(allowed, STALE_GAP) if stale else allowed
    if gap <= limit:
        return
    advice = (
        "they are of the policy before the last update: if that moved it so far, lower optimizer.lr, or set "
        "rollout.lookahead=0. --resume takes neither: start a new run from this one with them, "
        "model.path=<this run_dir> run_dir=<another>. --resume stops here again unless update.gap_tolerance is above "
        "this difference."
        if stale
        else "if it is precision alone, raise update.gap_tolerance, which --resume takes as well."
    )
    raise EngineError(
        f"{step}: on {tokens} sampled tokens the log-probs of the engine and of the trainer differ by {gap:.4g} on "
        f"average, where {limit:g} is allowed: the engine samples from another policy than the one that trains, and no "
        f"correction makes up for that. The weights are as they were. Look at update/sampler_gap of the steps before; "
        f"{advice}"
    )
