"""The worlds that one policy is warmed up for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from exprl.chain import problems as chain, tokenizer as chain_tokenizer
from exprl.chain.drawing import Draw
from exprl.worlds import clauses, reactions


@dataclass(frozen=True, kw_only=True)
class World:
    """What the warm-up has to know of a world.

    Attributes:
        name: for the record.
        draw: makes a problem of some length.
        lengths: which the warm-up shows; it measures at the last.
        writings: the references of a problem that between them have each right line of a step once.
    """

    name: str
    draw: Draw[Any]
    lengths: range
    writings: Callable[[Any], Sequence[str]]


def worlds(*, turns: int, processes: int, cases: int) -> tuple[World, ...]:
    """The three, up to these lengths; the one that is learnt slowest first."""
    return (
        World(name="clauses", draw=clauses.draw, lengths=range(clauses.FEWEST, cases + 1), writings=_both_signs),
        World(name="chain", draw=chain.draw, lengths=range(1, turns + 1), writings=_the_reference),
        World(name="reactions", draw=reactions.draw, lengths=range(1, processes + 1), writings=_the_reference),
    )


def tokens() -> tuple[str, ...]:
    """Of all three, each once."""
    return tuple(dict.fromkeys((*chain_tokenizer.TOKENS, *reactions.TOKENS, *clauses.TOKENS)))


def _the_reference(problem: Any) -> Sequence[str]:
    return [problem.reference()]


def _both_signs(problem: clauses.Clauses) -> Sequence[str]:
    signs = ([sign] * len(problem.cases) for sign in (clauses.PLUS, clauses.MINUS))
    return [problem.written(own).reference() for own in signs]
