"""How the policies of the miniature worlds are warmed up."""

from __future__ import annotations

from typing import Annotated

from exprl.chain.problems import ChainLength
from exprl.component import option
from exprl.config.options import Options
from exprl.config.ranges import SMALLEST, PositiveInt, Range, Seed, Share


class WarmUpOptions(Options):
    """How far to warm up."""

    seed: Seed = option(default=0, help="seed of the initial weights and of the warm-up's problems")
    target_accuracy: Share = option(
        default=0.5, help="the warm-up ends when a step is sampled right with this probability"
    )
    lr: Annotated[float, Range(ge=SMALLEST, le=1000)] = option(default=2e-3, help="peak learning rate of the warm-up")
    batch_size: Annotated[int, Range(ge=1, le=2**16)] = option(default=64, help="problems in one update of the warm-up")
    max_updates: PositiveInt = option(
        default=1000, help="give up when the target is not reached after this many updates"
    )


class ChainWarmUp(WarmUpOptions):
    """What the policy of the world `chain` is shown."""

    max_steps: ChainLength = option(default=8, help="the warm-up's problems have 1 to this many steps")
    reads_references: bool | None = option(
        default=None,
        help="also learn to use a reference that stands on the lines before the question, as the teacher of "
        "self_distillation must: at first every problem has one, then three of four; null: if the method has a teacher",
    )
    reference_every: PositiveInt = option(default=2, help="those references state each so-many-th turn")
