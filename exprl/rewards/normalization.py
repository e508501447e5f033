"""Likert score to reward."""

from __future__ import annotations

from typing import Literal

Normalization = Literal["smooth", "clipped_extremes", "extremes_only", "semi_smooth"]

_KEPT: dict[str, dict[int, float]] = {
    "extremes_only": {1: 0.0, 5: 1.0},
    "semi_smooth": {1: 0.0, 4: 0.8, 5: 1.0},
}


def normalize(score: float, strategy: Normalization) -> float | None:
    """A Likert score in [1, 5] as a reward in [0, 1], or None where the strategy drops it (paper, ablations).

    `smooth`: (s - 1) / 4. `clipped_extremes`: up to 3 is 0, above is 1. `extremes_only`: 1 is 0 and 5 is 1, the rest
    is dropped. `semi_smooth`: 1 is 0, 4 is 0.8, 5 is 1, the rest is dropped. The last two look at the nearest whole
    score, halves upwards.

    >>> [normalize(s, "semi_smooth") for s in (1, 2, 4.4, 5)]
    [0.0, None, 0.8, 1.0]
    """
    if strategy == "smooth":
        return (score - 1.0) / 4.0
    if strategy == "clipped_extremes":
        return 0.0 if score <= 3.0 else 1.0
    return _KEPT[strategy].get(int(score + 0.5))
