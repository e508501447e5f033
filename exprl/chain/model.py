"""The policy of the miniature world: a small Llama, warmed up by supervised training and cached."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exprl.chain.options import WarmUpOptions
from exprl.chain.problems import TEACHER_TEMPLATE
from exprl.models.base import LanguageModel
from exprl.models.cache import cache_folder, draft_of
from exprl.models.provider import ModelProvider
from exprl.registry import MODELS
from exprl.resources import Resources

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MADE_BY = (
    "exprl.chain",
    "exprl.kernels",
    "exprl.models.logits",
    "exprl.text",
    "exprl.training.batching",
    "exprl.training.optimizer",
    "exprl.training.policy",
)
"""The packages and modules that the warmed-up weights depend on; read as files, as importing training is slow."""


@MODELS.register("chain")
class ChainModel(WarmUpOptions, ModelProvider):
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

    def load(self) -> LanguageModel:
        """The warmed-up policy, from the cache if it was made before; each call a fresh copy.

        Raises:
            ModelError: the warm-up does not reach its target, or the cache cannot be written.
        """
        folder = cache_folder() / "chain" / self.fingerprint()
        if not folder.is_dir():
            from exprl.chain import tokenizer as chain_tokenizer
            from exprl.chain.warmup import warm_up  # imports Lightning: only when there is something to train

            initial = chain_tokenizer.build_model(chain_tokenizer.ChainModelConfig(seed=self.seed))
            policy = self._with_tokenizer(initial)
            record = warm_up(policy, self)
            with draft_of(folder) as draft:
                policy.model.save_pretrained(draft)
                (draft / "warmup.json").write_text(json.dumps(record, indent=2) + "\n")
        from transformers import AutoModelForCausalLM

        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", trust_remote_code=False)
        return self._with_tokenizer(model.eval())

    def fingerprint(self) -> str:
        """Names the warmed-up weights: the options and the sources of what made them."""
        options = {**asdict(self.config), "reads_references": bool(self.reads_references)}
        text = json.dumps([options, *(source.read_text() for name in _MADE_BY for source in _sources(name))])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _with_tokenizer(self, model: PreTrainedModel) -> LanguageModel:
        from exprl.chain import tokenizer as chain_tokenizer  # imports transformers

        return LanguageModel(
            model=model,
            tokenizer=chain_tokenizer.build_tokenizer(),
            name="chain policy",
            teacher_template=TEACHER_TEMPLATE,
        )


def _sources(name: str) -> list[Path]:
    """The source files of a module or a package."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)]
    return sorted(Path(spec.origin).parent.rglob("*.py"))
