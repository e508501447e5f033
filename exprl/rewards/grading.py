"""Who grades what, in words: which judge, and what stands around it, each route of a run has."""

from __future__ import annotations

from collections.abc import Iterator

from exprl.config.fields import Choice, chosen_by, wrapped_option
from exprl.domains import Routes, Routing
from exprl.registry import JUDGES


def graders(reward: Choice, key: str = "reward") -> Iterator[str]:
    """One line for each route of a reward that has routes; none for another.

    A wrapper that is set for all judges of a run, or of one route alone, can be told from it.
    """
    if not issubclass(reward.cls, Routing):
        return
    for route, own in Routes(reward.config.domains, reward.config.default, key).items():
        place = f"{key}.{route}"
        within = list(graders(own, place))
        yield from within or [f"{place}: {own.name}, {_judged(own)}"]


def _judged(reward: Choice) -> str:
    judges = [choice for choice in chosen_by(reward.config) if choice.cls.registered_family == JUDGES.family]
    return " and ".join(f"judged by {' around '.join(_names(judge))}" for judge in judges) or "without a judge"


def _names(judge: Choice) -> Iterator[str]:
    yield judge.name
    inner = wrapped_option(JUDGES, judge.name)
    if inner is not None:
        yield from _names(getattr(judge.config, inner))
