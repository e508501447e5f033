"""Changes of style that leave every step what it was: a good judge's score does not move."""

from __future__ import annotations

import re
from random import Random
from typing import ClassVar

from exprl.evaluation.perturbations.base import Kind, Perturbation, each_step, sentences_of
from exprl.registry import PERTURBATIONS

_ARITHMETIC = re.compile(
    r"(?!^\d+[.)]\s)(?<![\w.])\d+(?:[.,]\d+)*(?:\s*[-+*/^=]\s*\d+(?:[.,]\d+)*)*(?![\w.]*\w)", re.MULTILINE
)
"""Numbers and what is reckoned with them, but no mark of a list."""


class Style(Perturbation):
    """A change of style."""

    kind: ClassVar[Kind] = "style"


@PERTURBATIONS.register("markdown")
class Markdown(Style):
    """A heading, a bullet for every line, its first word in bold."""

    def perturb(self, response: str, question: str, random: Random) -> str | None:
        """See `Perturbation`."""
        return "## Solution\n\n" + each_step(response, _bullet)


def _bullet(line: str) -> str:
    first, space, rest = line.strip().partition(" ")
    return f"- **{first}**{space}{rest}"


@PERTURBATIONS.register("latex")
class Latex(Style):
    """Numbers and their sums and products between dollar signs; nothing where there are such already."""

    def perturb(self, response: str, question: str, random: Random) -> str | None:
        """See `Perturbation`."""
        if "$" in response or "\\(" in response:
            return None
        changed = _ARITHMETIC.sub(lambda found: f"${found[0].replace('*', chr(92) + 'cdot')}$", response)
        return None if changed == response else changed


class Opening(Style):
    """A word or two at the beginning of every line that begins with a word."""

    openings: ClassVar[tuple[str, ...]]

    def perturb(self, response: str, question: str, random: Random) -> str | None:
        """See `Perturbation`."""

        def opened(line: str) -> str:
            return f"{random.choice(self.openings)}: {line}" if line[:1].isalpha() else line

        changed = each_step(response, opened)
        return None if changed == response.rstrip("\n") else changed


@PERTURBATIONS.register("hedging")
class Hedging(Opening):
    """Every line is said with doubt."""

    openings = ("Perhaps", "I think", "If I am not mistaken", "It seems", "I am not sure, but maybe")


@PERTURBATIONS.register("confidence")
class Confidence(Opening):
    """Every line is said with certainty."""

    openings = ("Clearly", "Without any doubt", "Obviously", "It is certain", "Of course")


@PERTURBATIONS.register("line_breaks")
class LineBreaks(Style):
    """A paragraph for every sentence."""

    def perturb(self, response: str, question: str, random: Random) -> str | None:
        """See `Perturbation`."""
        sentences = [sentence for line in response.splitlines() if line.strip() for sentence in sentences_of(line)]
        changed = "\n\n".join(sentences)
        return None if changed == response.strip() else changed


@PERTURBATIONS.register("restatement")
class Restatement(Style):
    """Every line is said twice."""

    def perturb(self, response: str, question: str, random: Random) -> str | None:
        """See `Perturbation`."""
        return each_step(response, lambda line: f"{line}\nTo say this step once more: {line.strip()}")
