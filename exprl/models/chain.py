"""The policy of the miniature world: a small Llama, warmed up by supervised training and cached."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from exprl.component import option
from exprl.models import chain_tokenizer
from exprl.models.base import LanguageModel, ModelProvider
from exprl.models.cache import cache_folder
from exprl.registry import MODELS

log = logging.getLogger(__name__)


@MODELS.register("chain")
class ChainModel(ModelProvider):
    """A policy of half a million parameters for the world `chain`, warmed up on easy problems and cached.

    The warm-up shows every length, so that the format holds, but right solutions only up to `solved_steps` steps:
    longer ones are written by a careless solver. It ends at a measured step accuracy, not after a number of updates.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Size, and how far to warm up."""

        seed: int = option(0, "seed of the initial weights and of the warm-up's problems")

    def load(self) -> LanguageModel:
        """The warmed-up policy, from the cache if this config was warmed up before."""
        from transformers import AutoModelForCausalLM

        from exprl.training.chain_warmup import warm_up

        folder = cache_folder() / f"chain-{self.fingerprint()}"
        if not folder.is_dir():
            policy = LanguageModel(
                model=chain_tokenizer.build_model(chain_tokenizer.ChainModelConfig(seed=self.config.seed)),
                tokenizer=chain_tokenizer.build_tokenizer(),
                name="chain policy",
            )
            save(policy, folder, warm_up(policy, self.config))
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        return LanguageModel(model=model, tokenizer=chain_tokenizer.build_tokenizer(), name="chain policy")
