"""Solve rates of problems: which are kept, and what one was counted from."""

from __future__ import annotations

from dataclasses import dataclass

from exprl.errors import ConfigError


@dataclass(frozen=True)
class Rates:
    """Problems with a solve rate from `low` to `high`, both included, are kept."""

    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ConfigError(
                f"--min-rate and --max-rate: need 0 <= min <= max <= 1, but got {self.low} and {self.high}."
            )

    def keep(self, count: Count) -> bool:
        """Whether a problem's solve rate lies within."""
        return self.low <= count.rate <= self.high


@dataclass(frozen=True, kw_only=True)
class Count:
    """How often a problem was solved; the hash of its content tells whether it is still the same problem."""

    id: str
    content: str
    samples: int
    correct: int

    @property
    def rate(self) -> float:
        """Share of right samples."""
        return self.correct / self.samples
