"""The policy of the miniature world: a small Llama, warmed up by supervised training and cached."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from exprl.component import option
from exprl.config.ranges import SMALLEST, PositiveInt, Range, Seed, Share
from exprl.data.chain import ChainLength
from exprl.models.base import LanguageModel, ModelProvider
from exprl.models.cache import cache_folder, draft_of
from exprl.registry import MODELS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MADE_BY = (
    "exprl.data.chain",
    "exprl.models.chain",
    "exprl.models.chain_tokenizer",
    "exprl.training.chain_warmup",
    "exprl.training.supervised",
)
"""The modules that the warmed-up weights depend on; not imported for that, as training would load Lightning."""


@MODELS.register("chain")
class ChainModel(ModelProvider):
    """A policy of 0.65 M parameters for the world `chain`, warmed up by supervised training and cached.

    The warm-up shows every length, so that the format holds, and ends at a measured step accuracy: single steps are
    mostly right, whole solutions of many steps almost never.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How far to warm up."""

        seed: Seed = option(0, "seed of the initial weights and of the warm-up's problems")
        max_steps: ChainLength = option(8, "the warm-up's problems have 1 to this many steps")
        target_accuracy: Share = option(0.5, "the warm-up ends when a step is sampled right with this probability")
        reads_references: bool = option(
            False,
            "also learn to use a reference that stands on the lines before the question, as the teacher of "
            "self_distillation must: at first every problem has one, then three of four",
        )
        reference_every: PositiveInt = option(2, "those references state each so-many-th turn")
        lr: Annotated[float, Range(ge=SMALLEST, le=1000)] = option(2e-3, "peak learning rate of the warm-up")
        batch_size: Annotated[int, Range(ge=1, le=2**16)] = option(64, "problems in one update of the warm-up")
        max_updates: PositiveInt = option(1000, "give up when the target is not reached after this many updates")

    config: Config

    def load(self) -> LanguageModel:
        """The warmed-up policy, from the cache if it was made before; each call a fresh copy.

        Raises:
            ModelError: the warm-up does not reach its target, or the cache cannot be written.
        """
        folder = cache_folder() / "chain" / self.fingerprint()
        if not folder.is_dir():
            from exprl.models import chain_tokenizer
            from exprl.training.chain_warmup import warm_up  # imports Lightning: only when there is something to train

            initial = chain_tokenizer.build_model(chain_tokenizer.ChainModelConfig(seed=self.config.seed))
            policy = self._with_tokenizer(initial)
            record = warm_up(policy, self.config)
            with draft_of(folder) as draft:
                policy.model.save_pretrained(draft)
                (draft / "warmup.json").write_text(json.dumps(record, indent=2) + "\n")
        from transformers import AutoModelForCausalLM

        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", trust_remote_code=False)
        return self._with_tokenizer(model.eval())

    def fingerprint(self) -> str:
        """Names the warmed-up weights: the options and the sources of world, tokenizer, model and warm-up."""
        text = json.dumps([asdict(self.config), *map(_source, _MADE_BY)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _with_tokenizer(self, model: PreTrainedModel) -> LanguageModel:
        from exprl.models import chain_tokenizer  # imports transformers

        return LanguageModel(model=model, tokenizer=chain_tokenizer.build_tokenizer(), name="chain policy")


def _source(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text()
