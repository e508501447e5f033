"""What training does to the prompts: which are unlocked, and how many still have all-wrong or all-right groups."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class OutcomeDynamics(Metric):
    """Shares of prompts whose rollouts are all wrong, all right or mixed, and how many prompts were solved at all.

    A prompt seen twice counts twice in the shares and once among the unlocked. Sums and ids run over all ranks.

    >>> dynamics = OutcomeDynamics()
    >>> dynamics.update(["a", "b"], [[False, False], [True, False]])
    >>> {name: value.item() for name, value in dynamics.compute().items()}
    {'accuracy': 0.25, 'all_0': 0.5, 'all_1': 0.0, 'mixed': 0.5, 'unlocked_prompts': 1.0}
    """

    is_differentiable = False
    full_state_update = False
    accuracy: Tensor
    all_0: Tensor
    all_1: Tensor
    prompts: Tensor
    unlocked: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("accuracy", "all_0", "all_1", "prompts"):
            self.add_state(name, default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("unlocked", default=[], dist_reduce_fx="cat")

    def update(self, problem_ids: Sequence[str], correct: Sequence[Sequence[bool]]) -> None:
        """Add P prompts with the verdicts on the rollouts of each; raises `ValueError` for a prompt without any."""
        for problem_id, verdicts in zip(problem_ids, correct, strict=True):
            if not verdicts:
                raise ValueError(f"problem {problem_id!r} has no rollouts")
            self.accuracy += sum(verdicts) / len(verdicts)
            self.all_0 += not any(verdicts)
            self.all_1 += all(verdicts)
        self.prompts += len(problem_ids)
        solved = [_number(name) for name, verdicts in zip(problem_ids, correct, strict=True) if any(verdicts)]
        new = torch.tensor(solved, dtype=torch.long, device=self.prompts.device)
        self.unlocked = [torch.cat([*self.unlocked, new]).unique()]  # one tensor, however long the training

    def compute(self) -> dict[str, Tensor]:
        """The shares and the number of unlocked prompts so far; NaN shares without any prompt."""
        unlocked = dim_zero_cat(self.unlocked) if len(self.unlocked) else torch.tensor([])
        return {
            "accuracy": self.accuracy / self.prompts,
            "all_0": self.all_0 / self.prompts,
            "all_1": self.all_1 / self.prompts,
            "mixed": (self.prompts - self.all_0 - self.all_1) / self.prompts,
            "unlocked_prompts": torch.tensor(float(len(unlocked.unique()))),
        }


def _number(problem_id: str) -> int:
    """An id as 63 bits, the same on every rank: metrics gather tensors, no texts."""
    return int.from_bytes(hashlib.blake2b(problem_id.encode(), digest_size=8).digest(), "big") >> 1
