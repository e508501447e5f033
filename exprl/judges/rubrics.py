"""Rubrics: the milestones of a solution with their points, read, written and checked.

A reference shows one way. A rubric says what on any way must be established, so that a judge can be asked about one
milestone at a time and every answer has its weight.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exprl.data.leakage import find_run, gist
from exprl.errors import RubricError
from exprl.invariants import fault_of
from exprl.judges.verdict import HIGHEST, LOWEST
from exprl.types import Problem, Scaffold
from exprl.verifiers.gold import gold_answer

FEWEST, MOST = 2, 12
"""Milestones of a rubric. One alone is right or wrong and grades no way to it; each costs the judge a prompt a trace,
and what a dozen is not enough for are steps of one derivation rather than milestones of every one."""

LIGHTEST, HEAVIEST = 1e-6, 1e6
"""Weight of a milestone: wide enough for every scale of points, and none is lost in, or overflows, the sum of all."""

LONGEST_TITLE = 80
"""Characters: titles stand beside each other in a judgement's rationale."""


@dataclass(frozen=True, kw_only=True)
class Milestone:
    """One thing a solution establishes.

    Attributes:
        title: what it is called wherever a judgement is shown, so that it must not give the answer away.
        what: what must be established; the judge alone reads it.
        weight: its points, on any scale from `LIGHTEST` to `HEAVIEST`: the marks of a proof, which sum to 7, are
            weights.
    """

    title: str
    what: str
    weight: float = 1.0


@dataclass(frozen=True)
class Rubric:
    """Milestones in the order in which a solution reaches them."""

    milestones: tuple[Milestone, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """Normalised to sum to 1."""
        total = math.fsum(milestone.weight for milestone in self.milestones)
        return tuple(milestone.weight / total for milestone in self.milestones)

    def share(self, established: Sequence[float]) -> float:
        """The weight of what is established, in [0, 1].

        Args:
            established: how far each milestone is, from 0 to 1: a probability, or 0 and 1.

        >>> Rubric((Milestone(title="a", what="", weight=3), Milestone(title="b", what=""))).share([1.0, 0.2])
        0.8
        """
        points = math.fsum(m.weight * p for m, p in zip(self.milestones, established, strict=True))
        return min(max(points / math.fsum(milestone.weight for milestone in self.milestones), 0.0), 1.0)

    def score(self, established: Sequence[float]) -> float:
        """The same on the Likert scale of judgements: 1 for nothing, 5 for all."""
        return LOWEST + (HIGHEST - LOWEST) * self.share(established)


def rubric_of_steps(steps: Sequence[str]) -> Rubric:
    """One milestone a step, all of equal weight; the titles say nothing, not even a number, which an answer may be."""
    titles = (f"{_ORDINALS[n]} step" if n < len(_ORDINALS) else f"step {n + 1}" for n in range(len(steps)))
    return Rubric(tuple(Milestone(title=title, what=step) for title, step in zip(titles, steps, strict=True)))


_ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth"),
    *("seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"),
)


# ------------------------------------------------------------------ what a problem's rubrics are made of


def origins(scaffold: Scaffold) -> tuple[str, ...]:
    """The texts of which a problem's rubrics are made, one each: of several the best counts.

    The rubrics of its own column where it has one; else the reference and its variants; else its steps as one text.

    Raises:
        RubricError: the column holds no rubric.
    """
    if scaffold.rubric is not None:
        return tuple(map(to_json, read_rubrics(scaffold.rubric.reveal())))
    if scaffold.reference is not None:
        variants = scaffold.variants.reveal() if scaffold.variants is not None else ()
        return (scaffold.reference.reveal(), *variants)
    return ("\n".join(scaffold.steps.reveal()),) if scaffold.steps is not None else ()


def digest_of(origin: str) -> str:
    """By which a rubric is known to be of this text; the text cannot be read back from it."""
    return hashlib.sha256(origin.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def own_rubrics(problem: Problem) -> tuple[Rubric, ...]:
    """The rubrics that a problem brings along: of its column, or else of its steps, checked.

    Raises:
        RubricError: it has neither, or they are none.
    """
    scaffold = problem.scaffold
    if scaffold.rubric is not None:
        found = read_rubrics(scaffold.rubric.reveal())
    elif scaffold.steps is not None:
        found = (rubric_of_steps(scaffold.steps.reveal()),)
    else:
        raise RubricError("it has neither a column `rubric` nor `steps`")
    return tuple(checked(rubric, problem) for rubric in found)


# ------------------------------------------------------------------ checks


def checked(rubric: Rubric, problem: Problem) -> Rubric:
    """`rubric`, seen to be one of `problem`.

    Raises:
        RubricError: what is wrong with it, by the number of the milestone; no criterion and no answer is shown.
    """
    answer = problem.scaffold.answer.reveal() if problem.scaffold.answer is not None else None
    check_count(len(rubric.milestones))
    titles: dict[str, int] = {}
    for number, milestone in enumerate(rubric.milestones, start=1):
        if (fault := _fault(milestone, answer)) is not None:
            raise RubricError(f"milestone {number}: {fault}")
        first = titles.setdefault(" ".join(milestone.title.casefold().split()), number)
        if first != number:
            raise RubricError(f"milestone {number}: its title is already that of milestone {first}; titles are unique")
    return rubric


def check_count(count: int) -> None:
    """Raise `RubricError` for more or fewer milestones than a rubric has."""
    if not FEWEST <= count <= MOST:
        raise RubricError(f"{count} milestone{'s' * (count != 1)}, but a rubric has {FEWEST} to {MOST}")


def _fault(milestone: Milestone, answer: str | None) -> str | None:
    title = milestone.title
    if not title.strip() or not milestone.what.strip():
        return f"its {'what' if title.strip() else 'title'} is empty"
    if len(title) > LONGEST_TITLE or len(title.splitlines()) > 1:
        return f"its title is one line of at most {LONGEST_TITLE} characters, but got {len(title)}; `what` has the rest"
    if (fault := _weight_fault(milestone.weight)) is not None:
        return fault
    if answer is not None and gives_away(title, answer):
        return "its title holds the final answer, and titles are shown with judgements; say it in `what` alone"
    return None


def gives_away(title: str, answer: str) -> bool:
    """Whether a title holds the final answer, or the value that an equation as answer ends in.

    >>> gives_away("Find x = 42", "42"), gives_away("Find x", "42"), gives_away("The base case 4", "n = 4")
    (True, False, True)
    >>> gives_away("Exclude a case", "A"), gives_away("Choose (A)", "A")
    (False, True)
    """
    gold = gold_answer(answer)
    if gold is None:
        return False
    if _LETTER.fullmatch(gold.text.strip()):
        return re.search(rf"(?:\(|(?i:option|choice|answer|is|=)\W*){gold.text.strip()}(?!\w)", title) is not None
    said = gist(title)
    return any(find_run(gist(text), said) is not None for text in (gold.text, gold.text.rpartition("=")[2]))


_LETTER = re.compile(r"[A-Za-z]")
"""A choice, which as a word says nothing."""


# ------------------------------------------------------------------ JSON


def to_node(rubric: Rubric) -> list[dict[str, Any]]:
    """The milestones as JSON has them."""
    return [{"title": m.title, "what": m.what, "weight": _plain(m.weight)} for m in rubric.milestones]


def to_json(rubric: Rubric) -> str:
    """The one way in which a rubric is written: equal rubrics are equal texts.

    >>> to_json(Rubric((Milestone(title="a", what="b", weight=2.0),)))
    '{"milestones": [{"title": "a", "what": "b", "weight": 2}]}'
    """
    return json.dumps({"milestones": to_node(rubric)}, ensure_ascii=False)


def read_rubrics(text: str) -> tuple[Rubric, ...]:
    """The rubrics in JSON: `{"milestones": [...]}`, the list of milestones alone, or a list of several rubrics.

    Raises:
        RubricError: it is something else; what is in it is not shown.

    >>> read_rubrics('[{"title": "a", "what": "b"}]')[0].milestones
    (Milestone(title='a', what='b', weight=1.0),)
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RubricError(f"a rubric is JSON, but this is none ({type(error).__name__})") from None
    if isinstance(value, list) and value and all(isinstance(item, (list, Mapping)) for item in value):
        several = all(isinstance(item, list) or "milestones" in item for item in value)
        return tuple(map(of_node, value)) if several else (of_node(value),)
    return (of_node(value),)


def of_node(value: Any) -> Rubric:
    """The rubric in a JSON value: a list of milestones, or an object that has it as `milestones`.

    Raises:
        RubricError: it is something else.
    """
    if isinstance(value, Mapping):
        _check_keys(value, "a rubric", ("milestones",), ("milestones",))
        value = value["milestones"]
    if not isinstance(value, list):
        raise RubricError(f"milestones are a list, but got a {type(value).__name__}")
    return Rubric(tuple(_milestone(item, number) for number, item in enumerate(value, start=1)))


def _milestone(item: Any, number: int) -> Milestone:
    who = f"milestone {number}"
    if not isinstance(item, Mapping):
        raise RubricError(f"{who} is an object with title, what and weight, but got a {type(item).__name__}")
    _check_keys(item, who, ("title", "what", "weight"), ("title", "what"))
    for key in ("title", "what"):
        if not isinstance(item[key], str):
            raise RubricError(f"{who}: its {key} is text, but got a {type(item[key]).__name__}")
        if unwritable := fault_of(item[key]):
            raise RubricError(f"{who}: its {key} has {unwritable}")
    weight = item.get("weight")
    if weight is None:  # left out, or null, which tables of columns write for that
        weight = 1.0
    elif (fault := _weight_fault(weight)) is not None:
        raise RubricError(f"{who}: {fault}")
    return Milestone(title=item["title"], what=item["what"], weight=float(weight))


def _weight_fault(value: Any) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and LIGHTEST <= value <= HEAVIEST:
        return None
    return f"its weight is a number from {LIGHTEST:g} to {HEAVIEST:g}, but got {_shown(value)}"


def _shown(value: Any) -> str:
    """Numbers as they are, or how long they are; of what else may stand there, its type."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < _LONG else f"a whole number of {int(math.log10(abs(value))) + 1} digits"
    return f"a {type(value).__name__}"


_LONG = 10**15
"""From here on a message does not show a number itself."""


def _check_keys(item: Mapping[str, Any], who: str, known: Sequence[str], needed: Sequence[str]) -> None:
    missing, unknown = [key for key in needed if key not in item], [key for key in item if key not in known]
    if missing:
        raise RubricError(f"{who} has no {missing[0]!r}")
    if unknown:
        raise RubricError(f"{who} has the unknown key {unknown[0]!r}; it has {', '.join(known)}")


def _plain(weight: float) -> float:
    return int(weight) if weight == int(weight) else weight
