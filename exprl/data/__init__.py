"""Problem sources. The DataModule is in `exprl.data.datamodule`, which alone needs Lightning."""

from exprl.data import champ, delimited, hub, humaneval, jsonl, mix, parquet, reasoning_gym
from exprl.data.base import ProblemSource

__all__ = ["ProblemSource", "champ", "delimited", "hub", "humaneval", "jsonl", "mix", "parquet", "reasoning_gym"]
