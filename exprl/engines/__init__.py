"""Engines: who samples rollouts."""

from exprl.engines.base import Engine, Sampling
from exprl.engines.server import ServerEngine
from exprl.engines.transformers import TransformersEngine
from exprl.engines.vllm import VLLMEngine
from exprl.engines.vllm_server import VLLMServerEngine

__all__ = ["Engine", "Sampling", "ServerEngine", "TransformersEngine", "VLLMEngine", "VLLMServerEngine"]
