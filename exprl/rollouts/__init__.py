"""Rollouts that are kept: a run's own, step by step, and those of others, to be read and scored again."""

from exprl.rollouts.store import RolloutStore, load_rollouts
from exprl.rollouts.stored import Label, StoredGroup

__all__ = ["Label", "RolloutStore", "StoredGroup", "load_rollouts"]
