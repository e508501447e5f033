"""Changes that spoil a response and leave its style: a good judge's score falls where it was right."""

from __future__ import annotations

import re
from random import Random
from typing import ClassVar

from exprl.evaluation.perturbations.base import Kind, Perturbation, at_step, sentences_of, steps_of
from exprl.registry import PERTURBATIONS

_RESULT = re.compile(r"(?<==)(\s*)(\d+)(?![\w]|[.,]\d)")
"""A whole number behind an equality sign."""
_NUMBER = re.compile(r"(?!^\d+[.)]\s)(?<![\w.])()(\d+)(?![\w]|[.,]\d)", re.MULTILINE)
"""Any other whole number, but no mark of a list."""
_LARGEST_CHANGE = 9
_NEGATIONS = (
    (re.compile(r"(?<![<>=!:])=(?!=)"), "≠"),
    (re.compile(r"\b(is|are|was|were|has to be|must be|can be|will be)\b(?! not\b)"), r"\1 not"),
    (re.compile(r"\b(we|there) (have|get|find|exist|exists)\b"), r"\1 do not \2"),
)


class Content(Perturbation):
    """A change of content."""

    kind: ClassVar[Kind] = "content"


@PERTURBATIONS.register("changed_number")
class ChangedNumber(Content):
    """A number in one step becomes another: a result where there is one, else any."""

    def perturb(self, response: str, question: str, random: Random) -> str | None:
        """See `Perturbation`."""
        for pattern in (_RESULT, _NUMBER):
            if found := list(pattern.finditer(response)):
                one = random.choice(found)
                other = int(one[2][-18:]) + random.randint(1, _LARGEST_CHANGE)
                return f"{response[: one.start()]}{one[1]}{other}{response[one.end() :]}"
        return None


@PERTURBATIONS.register("swapped_steps")
class SwappedSteps(Content):
    """Two neighbouring steps change places."""

    def perturb(self, response: str, question: str, random: Random) -> str | None:
        """See `Perturbation`."""
        steps = steps_of(response)
        places = [place for place in range(len(steps) - 1) if steps[place] != steps[place + 1]]
        if not places:
            return None
        place = random.choice(places)
        return at_step(at_step(response, place, [steps[place + 1]]), place + 1, [steps[place]])


@PERTURBATIONS.register("dropped_step")
class DroppedStep(Content):
    """One step is left out, but not the last."""

    def perturb(self, response: str, question: str, random: Random) -> str | None:
        """See `Perturbation`."""
        steps = steps_of(response)
        return at_step(response, random.randrange(len(steps) - 1), []) if len(steps) > 1 else None


@PERTURBATIONS.register("negated_conclusion")
class NegatedConclusion(Content):
    """The last sentence says the opposite."""

    def perturb(self, response: str, question: str, random: Random) -> str | None:
        """See `Perturbation`."""
        steps = steps_of(response)
        if not steps:
            return None
        *before, last = sentences_of(steps[-1])
        return at_step(response, len(steps) - 1, [" ".join([*before, negated(last)])])


def negated(sentence: str) -> str:
    """The opposite of a sentence: at its first verb, or equality, that is known.

    >>> negated("Therefore, there are 29 strings."), negated("x = 4")
    ('Therefore, there are not 29 strings.', 'x ≠ 4')
    """
    for pattern, other in _NEGATIONS:
        if pattern.search(sentence):
            return pattern.sub(other, sentence, count=1)
    return f"It is not true that {sentence}"
