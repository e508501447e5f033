"""A language model makes a rubric of a question and its reference, once, in lines that are read strictly."""

from __future__ import annotations

import re

from exprl.errors import RubricError
from exprl.judges.backends.base import Query, Reply
from exprl.judges.prompting import compose, read_prompt
from exprl.judges.rubrics import FEWEST, LONGEST_TITLE, MOST, Milestone, Rubric, check_count
from exprl.text.thinking import without_thinking

FORM = "points | title | what must be established"
EXAMPLE = "2 | The recurrence | The attempt shows that a(n) = 2 a(n-1) + 1 for all n > 1, with a(1) = 1."

MOST_POINTS = 100
_TITLE_WORDS, _CRITERION_WORDS = 8, 60
"""Most of a constrained line's, so that a model cannot run on in one. Words, as bounds on characters (80 and 400) took
xgrammar 1.9 s of CPU time to prepare for a vocabulary of 49,000, where these take 0.05 s and vLLM waits for 5 s."""

_LINE = re.compile(
    r"(?:[-*•] |\d{1,2}[.)] )?(?P<points>\d{1,3})(?: points?)? ?"
    rf"\|(?P<title>[^|]{{1,{2 * LONGEST_TITLE}}})\|(?P<what>.+)"
)
"""One milestone; that of a numbered or bulleted list is the same. Bars in the criterion are its own: |x|."""

_TITLE = rf"[^ |\n]+( [^ |\n]+){{0,{_TITLE_WORDS - 1}}}"
_CRITERION = rf"[^ \n]+( [^ \n]+){{0,{_CRITERION_WORDS - 1}}}"
PATTERN = rf"([1-9] \| {_TITLE} \| {_CRITERION}\n){{{FEWEST},{MOST}}}"
"""The regular expression of a constrained reply."""


def writing_query(question: str, reference: str, max_new_tokens: int, *, constrained: bool) -> Query:
    """How the model is asked for the rubric of one reference, to be written greedily."""
    prompt = compose(
        read_prompt("compile_rubric"),
        instructions={"fewest": str(FEWEST), "most": str(MOST), "form": FORM, "example": EXAMPLE},
        contents={"problem": question, "reference": reference},
    )
    return Query(prompt=prompt, max_new_tokens=max_new_tokens, pattern=PATTERN if constrained else "")


def written_rubric(reply: Reply) -> Rubric:
    """The rubric in a reply that the model itself has ended.

    Raises:
        RubricError: the request failed, the reply was cut off, or it is anything but lines of the form asked for.
    """
    if reply.status != "ok":
        raise RubricError(f"{reply.status}: {reply.text.strip()}")
    if not reply.finished:
        raise RubricError("the reply was cut off before its end, at the judge's max_new_tokens")
    return parse_rubric(reply.text)


def parse_rubric(text: str) -> Rubric:
    r"""The rubric in the text of a reply; whatever its title or criterion is to be is for `checked`.

    >>> [m.weight for m in parse_rubric("2 | Set up | It lets x be the width.\n3 | Solve | It finds x = 4.").milestones]
    [2.0, 3.0]

    Raises:
        RubricError: a line is none, or there are too many or too few; what is in it is not shown.
    """
    said = without_thinking(text)
    if said is None:
        raise RubricError("the reply ends within its thinking")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    check_count(len(lines))
    return Rubric(tuple(_milestone(line, number) for number, line in enumerate(lines, start=1)))


def _milestone(line: str, number: int) -> Milestone:
    found = _LINE.fullmatch(line)
    if found is None or not 1 <= int(found["points"]) <= MOST_POINTS:
        raise RubricError(f"line {number} of the reply is not of the form {FORM!r}, with 1 to {MOST_POINTS} points")
    return Milestone(title=found["title"].strip(), what=found["what"].strip(), weight=float(found["points"]))
