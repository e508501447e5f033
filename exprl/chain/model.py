"""The policy of the world `chain`: a small Llama, warmed up by supervised training and cached."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from exprl.chain.options import ChainWarmUp
from exprl.chain.problems import TEACHER_TEMPLATE
from exprl.chain.warmed import WarmedUpModel
from exprl.models.base import LanguageModel
from exprl.registry import MODELS
from exprl.resources import Resources

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@MODELS.register("chain")
class ChainModel(ChainWarmUp, WarmedUpModel):
    """A policy of 0.65 M parameters for the world `chain`, warmed up by supervised training and cached.

    The warm-up shows every length, so that the format holds, and ends at a measured step accuracy: single steps are
    mostly right, whole solutions of many steps almost never.
    """

    @classmethod
    def from_config(cls, config: Any, resources: Resources) -> ChainModel:
        """One that has learnt to read references where the run's method makes it a teacher and nothing else is said."""
        if config.reads_references is None:
            config = replace(config, reads_references=resources.teacher)
        return super().from_config(config, resources)

    def initial(self) -> PreTrainedModel:
        """A small Llama."""
        from exprl.chain import tokenizer as chain_tokenizer  # imports transformers

        return chain_tokenizer.build_model(chain_tokenizer.ChainModelConfig(seed=self.seed))

    def with_tokenizer(self, model: PreTrainedModel) -> LanguageModel:
        """With the tokenizer of its world."""
        from exprl.chain import tokenizer as chain_tokenizer

        return LanguageModel(
            model=model,
            tokenizer=chain_tokenizer.build_tokenizer(),
            name="chain policy",
            teacher_template=TEACHER_TEMPLATE,
        )

    def warm_up(self, policy: LanguageModel) -> dict[str, Any]:
        """See `exprl.chain.warmup`."""
        from exprl.chain.warmup import warm_up  # imports Lightning: only when there is something to train

        return warm_up(policy, self)

    def told(self) -> dict[str, Any]:
        """Whether it reads references is all the same if it is left out."""
        return {**super().told(), "reads_references": bool(self.reads_references)}
