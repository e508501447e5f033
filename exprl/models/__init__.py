"""Models: what provides the initial policy."""

from exprl.models.base import LanguageModel, ModelProvider
from exprl.models.pretrained import PretrainedModel

__all__ = ["LanguageModel", "ModelProvider", "PretrainedModel"]
