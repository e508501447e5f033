"""Models: what provides the initial policy."""

from exprl.models.base import LanguageModel
from exprl.models.pretrained import PretrainedModel
from exprl.models.provider import ModelProvider

__all__ = ["LanguageModel", "ModelProvider", "PretrainedModel"]
