"""The policy of the miniature world: a small Llama, warmed up by supervised training and cached."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from exprl.component import option
from exprl.data import chain
from exprl.models import chain_tokenizer
from exprl.models.base import LanguageModel, ModelProvider
from exprl.models.cache import cache_folder, draft_of
from exprl.registry import MODELS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MODULES: tuple[ModuleType, ...] = (chain, chain_tokenizer)


@MODELS.register("chain")
class ChainModel(ModelProvider):
    """A policy of 0.65 M parameters for the world `chain`, warmed up by supervised training and cached.

    The warm-up shows every length, so that the format holds, and ends at a measured step accuracy: single steps are
    mostly right, whole solutions of many steps almost never.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How far to warm up."""

        seed: int = option(0, "seed of the initial weights and of the warm-up's problems")
        max_steps: int = option(8, "the warm-up's problems have 1 to this many steps")
        target_accuracy: float = option(0.5, "the warm-up ends when a step is sampled right with this probability")
        reads_references: bool = option(
            False,
            "also learn to use a reference that stands on the lines before the question, as the teacher of "
            "self_distillation must: at first every problem has one, then three of four",
        )
        reference_every: int = option(2, "those references state each so-many-th turn")
        lr: float = option(2e-3, "peak learning rate of the warm-up")
        batch_size: int = option(64, "problems in one update of the warm-up")
        max_updates: int = option(1000, "give up when the target is not reached after this many updates")

    config: Config

    def load(self) -> LanguageModel:
        """The warmed-up policy, from the cache if it was made before; each call a fresh copy.

        Raises:
            ModelError: the warm-up does not reach its target, or the cache cannot be written.
        """
        folder = cache_folder() / "chain" / self.fingerprint()
        if not folder.is_dir():
            from exprl.training.chain_warmup import warm_up  # imports Lightning: only when there is something to train

            initial = chain_tokenizer.build_model(chain_tokenizer.ChainModelConfig(seed=self.config.seed))
            policy = self._with_tokenizer(initial)
            record = warm_up(policy, self.config)
            with draft_of(folder) as draft:
                policy.model.save_pretrained(draft)
                (draft / "warmup.json").write_text(json.dumps(record, indent=2) + "\n")
        from transformers import AutoModelForCausalLM

        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        return self._with_tokenizer(model.eval())

    def fingerprint(self) -> str:
        """Names the warmed-up weights: the options and the sources of world, tokenizer, model and warm-up."""
        warm_up = find_spec("exprl.training.chain_warmup")  # importing it would load Lightning
        assert warm_up is not None
        assert warm_up.origin is not None
        sources = [*(inspect.getsource(module) for module in _MODULES), Path(warm_up.origin).read_text()]
        text = json.dumps([asdict(self.config), *sources])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _with_tokenizer(self, model: PreTrainedModel) -> LanguageModel:
        return LanguageModel(model=model, tokenizer=chain_tokenizer.build_tokenizer(), name="chain policy")
