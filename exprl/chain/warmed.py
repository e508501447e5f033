"""A policy that supervised training warms up once: its weights are cached, and named by all that they depend on."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from exprl.chain.options import WarmUpOptions
from exprl.models.base import LanguageModel
from exprl.models.cache import cache_folder, draft_of
from exprl.models.provider import ModelProvider

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


class WarmedUpModel(WarmUpOptions, ModelProvider):
    """Base of the miniature worlds' policies."""

    made_by: ClassVar[tuple[str, ...]] = _MADE_BY
    """The packages and modules that the warmed-up weights depend on; read as files, as importing training is slow."""

    @abstractmethod
    def initial(self) -> PreTrainedModel:
        """The policy with random weights."""

    @abstractmethod
    def with_tokenizer(self, model: PreTrainedModel) -> LanguageModel:
        """A policy with its tokenizer."""

    @abstractmethod
    def warm_up(self, policy: LanguageModel) -> dict[str, Any]:
        """Train a policy in place; returns what was measured."""

    def load(self) -> LanguageModel:
        """The warmed-up policy, from the cache if it was made before; each call a fresh copy.

        Raises:
            ModelError: the warm-up does not reach its target, or the cache cannot be written.
        """
        folder = self.folder()
        if not folder.is_dir():
            policy = self.with_tokenizer(self.initial())
            record = self.warm_up(policy)
            with draft_of(folder) as draft:
                policy.model.save_pretrained(draft)
                (draft / "warmup.json").write_text(json.dumps(record, indent=2) + "\n")
        from transformers import AutoModelForCausalLM

        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", trust_remote_code=False)
        return self.with_tokenizer(model.eval())

    def folder(self) -> Path:
        """Where the weights are kept."""
        return cache_folder() / self.registered_name / self.fingerprint()

    def fingerprint(self) -> str:
        """Names the warmed-up weights: the options and the sources of what made them."""
        text = json.dumps([self.told(), *(source.read_text() for name in self.made_by for source in _sources(name))])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def told(self) -> dict[str, Any]:
        """The options that the weights depend on."""
        return asdict(self.config)


def _sources(name: str) -> list[Path]:
    """The source files of a module or a package."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)]
    return sorted(Path(spec.origin).parent.rglob("*.py"))
