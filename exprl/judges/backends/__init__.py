"""Registers who can run a judge's model; imported when one is looked up, since some load heavy libraries."""

from exprl.judges.backends.auto import AutoBackend
from exprl.judges.backends.base import JudgeBackend
from exprl.judges.backends.server import ServerBackend
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.backends.vllm import VLLMBackend
from exprl.judges.backends.vllm_server import VLLMServerBackend

__all__ = ["AutoBackend", "JudgeBackend", "ServerBackend", "TransformersBackend", "VLLMBackend", "VLLMServerBackend"]
