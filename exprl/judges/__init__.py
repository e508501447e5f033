"""Judges: who grades a trace against the hidden reference."""

from exprl.judges.base import Judge
from exprl.judges.checkpoint import CheckpointJudge

__all__ = ["CheckpointJudge", "Judge"]
