"""What a component gives, seen to be what its family promises before anything is built on it.

Anybody may register a component. One that gives something else is named, with what it gave and what is allowed, and
nothing is learned from it; its own exceptions are its author's to read and pass as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from numbers import Integral
from typing import ParamSpec, TypeVar

from exprl.errors import ContractError
from exprl.invariants import contiguous, shown
from exprl.types import Advantages, AnyReward, Rollout, Segment

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def given_by(who: str) -> Iterator[None]:
    """Inside, a value that its type refuses is `who`'s, unless somebody further in is known to have made it."""
    try:
        yield
    except ContractError as error:
        raise error if error.giver else ContractError(str(error), giver=who) from error


def not_the_end(function: Callable[P, T]) -> Callable[P, T]:
    """The same function, whose `StopIteration` is an error: loops that call it would take one for their data's end.

    Raises:
        RuntimeError: the function, or anybody's component that it calls, raised `StopIteration`.
    """

    @functools.wraps(function)
    def wrapped(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return function(*arguments, **options)
        except StopIteration as error:
            raise RuntimeError("a StopIteration was not caught where it was raised, for example of a next()") from error

    return wrapped


def check_segments(rollout: Rollout, segments: object, who: str) -> tuple[Segment, ...]:
    """`segments`, seen to be contiguous and to cover the T tokens of `rollout`; raises `ContractError`."""
    allowed = f"segments must be contiguous and cover all {len(rollout)} tokens from 0 on"
    if not isinstance(segments, (list, tuple)) or not all(isinstance(segment, Segment) for segment in segments):
        raise ContractError(f"gave {shown(segments)}: it must return a tuple of Segment; {allowed}.", giver=who)
    if not contiguous(segments, len(rollout)):
        cut = ", ".join(f"[{s.start}, {s.end})" for s in segments)
        raise ContractError(f"gave {cut or 'no segment'}: {allowed}.", giver=who)
    return tuple(segments)


def check_prefix_ends(rollout: Rollout, ends: object, who: str) -> tuple[int, ...]:
    """`ends` of prefixes, seen to ascend within the T tokens of `rollout` up to T; raises `ContractError`."""
    allowed = f"prefix ends must be whole numbers that ascend from 1 or more to all {len(rollout)} tokens"
    if not isinstance(ends, (list, tuple)) or not all(isinstance(end, Integral) for end in ends):
        raise ContractError(f"gave {shown(ends)}: {allowed}.", giver=who)
    every = [0, *ends]
    if any(before >= after for before, after in pairwise(every)) or every[-1] != len(rollout):
        raise ContractError(f"gave {shown(ends)}: {allowed}.", giver=who)
    return tuple(map(int, ends))


def check_scored(segments: tuple[Segment, ...], ends: Sequence[int], who: str) -> tuple[Segment, ...]:
    """`segments`, seen to end where a prefix of `ends` was judged; raises `ContractError`."""
    elsewhere = [segment.end for segment in segments if segment.end not in set(ends)]
    if elsewhere:
        raise ContractError(
            f"gave a segment that ends at token {elsewhere[0]}, where it asked for no score: {shown([*ends])}.",
            giver=who,
        )
    return segments


def check_verdicts(count: int, verdicts: object, who: str) -> list[bool]:
    """`verdicts` as a list, seen to be True or False for each of `count` responses; raises `ContractError`."""
    if not isinstance(verdicts, (list, tuple)) or len(verdicts) != count:
        raise ContractError(
            f"gave {shown(verdicts)}: it must return a verdict for each of {count} responses.", giver=who
        )
    truths = [verdict if isinstance(verdict, bool) else _scalar(verdict) for verdict in verdicts]
    for verdict, truth in zip(verdicts, truths, strict=True):
        if not isinstance(truth, bool):
            raise ContractError(f"gave {shown(verdict)}: a verdict must be True or False.", giver=who)
    return [bool(truth) for truth in truths]


def check_values(groups: Sequence[Sequence[Sequence[float]]], values: object, who: str) -> None:
    """See that `values` hold a value for each score of each rollout of each group; raises `ContractError`.

    That each is a finite number `Advantages` itself sees to.

    Args:
        groups: for each group the scores of its rollouts, r_1..r_K each.
        values: what an advantage made of them.
        who: the advantage.
    """
    if not _alike(values, groups):
        raise ContractError(f"gave {shown(values)} for {len(groups)} groups: it must give one list a group.", giver=who)
    for group, of_group in zip(groups, values, strict=True):  # type: ignore[call-overload]
        if not _alike(of_group, group):
            what = f"gave {shown(of_group)} for a group of {len(group)} rollouts with scores"
            raise ContractError(f"{what}: it must give one tuple a rollout.", giver=who)
        for scores, own in zip(group, of_group, strict=True):
            if not _alike(own, scores):
                what = f"gave {shown(own)} for a rollout of {len(scores)} segments"
                raise ContractError(f"{what}: it must give a number for each segment.", giver=who)


def check_estimates(rewards: Sequence[Sequence[AnyReward]], estimates: object, who: str) -> None:
    """See that `estimates` hold `Advantages` over the tokens of each rollout of each group; raises `ContractError`."""
    if not _alike(estimates, rewards):
        raise ContractError(f"gave advantages {shown(estimates)} for {len(rewards)} groups.", giver=who)
    for group, own in zip(rewards, estimates, strict=True):  # type: ignore[call-overload]
        if not _alike(own, group) or not all(isinstance(each, Advantages) for each in own):
            what = f"gave {shown(own)} for a group of {len(group)} rollouts"
            raise ContractError(f"{what}: it must give one Advantages a rollout.", giver=who)
        for reward, advantages in zip(group, own, strict=True):
            if advantages.length != reward.length:
                what = f"gave advantages of {advantages.length} tokens for a rollout of {reward.length}"
                raise ContractError(f"{what}: segments must cover it.", giver=who)


def _alike(given: object, asked: Sequence[object]) -> bool:
    return isinstance(given, (list, tuple)) and len(given) == len(asked)


def _scalar(value: object) -> object:
    """The plain value of a scalar of NumPy or torch."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "shape", None) == () else value
