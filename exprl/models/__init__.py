"""Models: what provides the initial policy."""

from exprl.models.base import LanguageModel, ModelProvider
from exprl.models.chain import ChainModel
from exprl.models.pretrained import PretrainedModel

__all__ = ["ChainModel", "LanguageModel", "ModelProvider", "PretrainedModel"]
