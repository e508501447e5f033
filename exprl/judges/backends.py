"""Registers who can run a judge's model; imported when one is looked up, since some load heavy libraries."""

from exprl.judges.auto import AutoBackend
from exprl.judges.backend import JudgeBackend
from exprl.judges.huggingface import HuggingFaceBackend
from exprl.judges.server import ServerBackend
from exprl.judges.vllm import VLLMBackend

__all__ = ["AutoBackend", "HuggingFaceBackend", "JudgeBackend", "ServerBackend", "VLLMBackend"]
