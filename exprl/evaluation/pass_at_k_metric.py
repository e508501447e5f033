"""Pass@k as a metric, for loops of one's own; apart from the function, as torchmetrics takes seconds to load."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from exprl.evaluation.pass_at_k import pass_at_k


class PassAtK(Metric):
    """Mean unbiased pass@k over problems, summed over ranks.

    >>> metric = PassAtK(k=2)
    >>> metric.update(torch.tensor([1, 4]), torch.tensor([4, 4]))
    >>> metric.compute()
    tensor(0.7500)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    problems: Tensor

    def __init__(self, k: int, **options: Any) -> None:
        super().__init__(**options)
        if k < 1:
            raise ValueError(f"k must be at least 1, but got {k}")
        self.k = k
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("problems", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, correct: Tensor, samples: Tensor) -> None:
        """Add P problems.

        Args:
            correct: [P] right samples of each problem.
            samples: [P] samples drawn of each problem.
        """
        values = pass_at_k(samples.cpu().numpy(), correct.cpu().numpy(), self.k)
        self.total += float(values.sum())
        self.problems += len(values)

    def compute(self) -> Tensor:
        """The mean over all problems so far; NaN without any."""
        return self.total / self.problems
