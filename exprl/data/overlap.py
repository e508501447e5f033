"""Held-out problems that are trained on."""

from __future__ import annotations

from collections.abc import Sequence

from exprl.types import Problem


def overlap_warning(training: Sequence[Problem], held_out: Sequence[Problem]) -> str | None:
    """What to say of held-out problems whose question is a training problem's too; None: there are none.

    Letter case and white space do not count.
    """
    trained: dict[str, str] = {}
    for problem in training:
        trained.setdefault(_asked(problem), problem.id)
    shared = [(problem.id, trained[_asked(problem)]) for problem in held_out if _asked(problem) in trained]
    if not shared:
        return None
    own, other = shared[0]
    return (
        f"evaluation.source: {len(shared)} of {len(held_out)} held-out problems are training problems too (first: "
        f"{own!r}, in data.train {other!r}), so their figures say nothing of problems that were not trained on. Part "
        "the sources, for example by `limit` of the one and `offset` of the other."
    )


def _asked(problem: Problem) -> str:
    return " ".join(problem.question.text.casefold().split())
