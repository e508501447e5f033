"""How the miniature world's policy is warmed up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from exprl.chain.problems import ChainLength
from exprl.component import checked, option
from exprl.config.ranges import SMALLEST, PositiveInt, Range, Seed, Share


@checked
@dataclass(frozen=True, kw_only=True)
class WarmUpOptions:
    """How far to warm up."""

    seed: Seed = option(0, "seed of the initial weights and of the warm-up's problems")
    max_steps: ChainLength = option(8, "the warm-up's problems have 1 to this many steps")
    target_accuracy: Share = option(0.5, "the warm-up ends when a step is sampled right with this probability")
    reads_references: bool | None = option(
        None,
        "also learn to use a reference that stands on the lines before the question, as the teacher of "
        "self_distillation must: at first every problem has one, then three of four; null: if the method has a teacher",
    )
    reference_every: PositiveInt = option(2, "those references state each so-many-th turn")
    lr: Annotated[float, Range(ge=SMALLEST, le=1000)] = option(2e-3, "peak learning rate of the warm-up")
    batch_size: Annotated[int, Range(ge=1, le=2**16)] = option(64, "problems in one update of the warm-up")
    max_updates: PositiveInt = option(1000, "give up when the target is not reached after this many updates")
