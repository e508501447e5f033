"""Engines: who samples rollouts."""

from exprl.engines.base import Engine, Sampling
from exprl.engines.transformers import TransformersEngine

__all__ = ["Engine", "Sampling", "TransformersEngine"]
