"""The question whether a trace has established a milestone."""

from __future__ import annotations

import re

from exprl.judges.backends.base import Query
from exprl.judges.prefixes import Parts, prefix_of, replaced
from exprl.judges.prompting import compose, read_prompt
from exprl.judges.rubrics import Milestone
from exprl.judges.yes_no import instruction, yes_no
from exprl.types import JudgeRequest

WORD = "Established"
"""What the reply begins with."""


def milestone_query(request: JudgeRequest, milestone: Milestone) -> Query:
    """Problem and trace first, the milestone last: what comes before is computed once for all of them.

    The rest of the rubric is not shown, so that whoever edits a milestone changes the answers to that one alone.
    """
    prompt = compose(
        read_prompt("milestone"),
        instructions={"view": read_prompt(request.view), "verdict": instruction(WORD)},
        contents={
            "problem": request.problem.question.text,
            "attempt": prefix_of(request).made(without_answers),
            "milestone": f"{milestone.title}\n{milestone.what}",
        },
    )
    return yes_no(prompt, WORD)


def without_answers(parts: Parts) -> Parts:
    """A trace without the words of an answer to the judge's own question, which a small model would copy.

    >>> without_answers(Parts(["So x = 2 is established. **Established:** Y"])).text
    'So x = 2 is established. **claimed:** Y'
    """
    return replaced(parts, [found.span() for found in _ANSWER.finditer(parts.text)], "claimed")


_ANSWER = re.compile(rf"(?<![a-z]){WORD}(?=[\W_]{{1,8}}(?:y|n|yes|no)(?![a-z]))", re.IGNORECASE)
