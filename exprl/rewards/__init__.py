"""Rewards: what a rollout, or each of its segments, is worth."""

from exprl.rewards.base import Reward
from exprl.rewards.by_domain import ByDomainReward
from exprl.rewards.execution import ExecutionReward
from exprl.rewards.judged import JudgedReward
from exprl.rewards.normalization import normalize
from exprl.rewards.outcome import OutcomeReward
from exprl.rewards.process import ProcessReward
from exprl.rewards.sparse import SparseReward

__all__ = [
    "ByDomainReward",
    "ExecutionReward",
    "JudgedReward",
    "OutcomeReward",
    "ProcessReward",
    "Reward",
    "SparseReward",
    "normalize",
]
