"""The policy of several worlds: a small Llama with one tokenizer, warmed up by supervised training and cached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from exprl.chain.problems import ChainLength
from exprl.chain.warmed import WarmedUpModel
from exprl.component import option
from exprl.config.ranges import PositiveInt, Range
from exprl.models.base import LanguageModel
from exprl.registry import MODELS
from exprl.worlds.clauses import FEWEST, MOST
from exprl.worlds.reactions import LONGEST

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@MODELS.register("worlds")
class WorldsModel(WarmedUpModel):
    """A policy of 0.67 M parameters for the worlds `chain`, `reactions` and `clauses`, warmed up for all three.

    The warm-up shows every length and ends when each world has at least the measured step accuracy: single steps are
    mostly right, whole solutions of many steps seldom.
    """

    made_by: ClassVar[tuple[str, ...]] = (*WarmedUpModel.made_by, "exprl.worlds", "exprl.execution.tests")

    turns: ChainLength = option(default=7, help="problems of `chain` have 1 to this many turns")
    processes: Annotated[int, Range(ge=2, le=LONGEST)] = option(
        default=6, help="problems of `reactions` have 1 to this many processes"
    )
    cases: Annotated[int, Range(ge=FEWEST, le=MOST)] = option(
        default=4, help=f"problems of `clauses` have {FEWEST} to this many cases"
    )
    max_updates: PositiveInt = option(
        default=3000, help="give up when the target is not reached after this many updates"
    )

    def initial(self) -> PreTrainedModel:
        """A small Llama."""
        from exprl.chain.tokenizer import ChainModelConfig, build_model  # imports transformers
        from exprl.worlds.world import tokens

        return build_model(ChainModelConfig(seed=self.seed), tokens())

    def with_tokenizer(self, model: PreTrainedModel) -> LanguageModel:
        """With the tokenizer of all worlds."""
        from exprl.chain.tokenizer import build_tokenizer
        from exprl.worlds.world import tokens

        return LanguageModel(model=model, tokenizer=build_tokenizer(tokens()), name="policy of the worlds")

    def warm_up(self, policy: LanguageModel) -> dict[str, Any]:
        """See `exprl.worlds.warmup`."""
        from exprl.worlds.warmup import warm_up  # imports Lightning: only when there is something to train
        from exprl.worlds.world import worlds

        return warm_up(policy, worlds(turns=self.turns, processes=self.processes, cases=self.cases), self)
