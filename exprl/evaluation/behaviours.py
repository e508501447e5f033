"""How often traces verify, correct themselves, go back and try other ways."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from exprl.evaluation.detectors import BEHAVIOUR_NAMES, BehaviourDetector, LexicalDetector


class BehaviourRates(Metric):
    """Share of traces that show each behaviour, over all ranks; a trace without a verdict leaves that share.

    Args:
        detector: who decides; None: the lexical one.

    >>> rates = BehaviourRates()
    >>> rates.update(["Let me double-check: 2 + 2 = 4.", "2 + 2 = 4"])
    >>> rates.compute()["verification"]
    tensor(0.5000)
    """

    is_differentiable = False
    full_state_update = False
    shown: Tensor
    judged: Tensor

    def __init__(self, detector: BehaviourDetector | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.detector = detector if detector is not None else lexical()
        for state in ("shown", "judged"):  # [4] traces that show each behaviour, and traces with a verdict
            self.add_state(state, default=torch.zeros(len(BEHAVIOUR_NAMES), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, texts: Sequence[str]) -> None:
        """Add traces."""
        for found in self.detector.detect(texts):
            verdicts = [found[name] for name in BEHAVIOUR_NAMES]
            self.shown += torch.tensor([verdict is True for verdict in verdicts], device=self.shown.device)
            self.judged += torch.tensor([verdict is not None for verdict in verdicts], device=self.judged.device)

    def compute(self) -> dict[str, Tensor]:
        """The share of each behaviour by name; NaN where no trace has a verdict."""
        return dict(zip(BEHAVIOUR_NAMES, self.shown / self.judged, strict=True))


@cache
def lexical() -> LexicalDetector:
    """The lexical detector, its patterns compiled once."""
    return LexicalDetector()
