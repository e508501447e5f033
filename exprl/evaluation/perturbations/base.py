"""What a perturbation is: a response in, another one out, whatever the judge."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from random import Random
from typing import ClassVar, Literal, get_args

from exprl.component import Component

Kind = Literal["style", "content", "attack"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_SENTENCE_ENDS = re.compile(r"(?<=[.!?])[ \t]+(?=[A-Z])")


class Perturbation(Component):
    """Changes a response: a good judge's score does not move with its `style`, falls with its `content`, and does not
    rise by an `attack`.

    The first two are the invariance and the directional tests of Ribeiro et al. 2020 (arXiv:2005.04118).
    """

    registered_family: ClassVar[str] = "perturbation"

    kind: ClassVar[Kind]

    @abstractmethod
    def perturb(self, response: str, question: str, random: Random) -> str | None:
        """The response, changed; None where there is nothing in it to change.

        Args:
            response: what a policy wrote; of attacks it may be empty.
            question: what it was asked. The reference is not given: a policy has none.
            random: of this response and perturbation alone, so that the same comes out whatever else is perturbed.
        """


def steps_of(response: str) -> list[str]:
    r"""The lines that say something.

    >>> steps_of("a = 1\n\nb = 2\n")
    ['a = 1', 'b = 2']
    """
    return [line for line in response.splitlines() if line.strip()]


def sentences_of(line: str) -> list[str]:
    """The sentences of a line, the mark of a list being none.

    >>> sentences_of("1. It is 3.5. So we stop. Done")
    ['1. It is 3.5.', 'So we stop.', 'Done']
    """
    first, *others = _SENTENCE_ENDS.split(line)
    return [f"{first} {others[0]}", *others[1:]] if others and " " not in first.strip() else [first, *others]


def each_step(response: str, change: Callable[[str], str]) -> str:
    """The response with its lines changed, and blank ones left alone."""
    return "\n".join(change(line) if line.strip() else line for line in response.splitlines())


def at_step(response: str, number: int, new: Sequence[str]) -> str:
    r"""The response with these lines in the place of one that says something, counted from 0.

    >>> at_step("a\n\nb\nc", 1, ["x", "y"])
    'a\n\nx\ny\nc'
    """
    lines = response.splitlines()
    place = [line for line, text in enumerate(lines) if text.strip()][number]
    return "\n".join([*lines[:place], *new, *lines[place + 1 :]])


def below(response: str, addition: str) -> str:
    """Something said after the response, or in place of an empty one."""
    return f"{response}\n{addition}" if response else addition
