"""The judge's prompt: instructions first, then problem and reference, the attempt last.

In this order the prompts for the prefixes of one rollout begin alike up to where the shorter one ends, so a backend can
compute the common part once. What comes from outside (problem, reference, attempt) is kept apart from what is ours: a
backend tokenises it without control tokens, and it cannot close its own tag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from exprl.judges.defusing import defuse, frame_names

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Piece:
    """A part of a prompt; text that is not `ours` may be hostile."""

    text: str
    ours: bool = True


@dataclass(frozen=True)
class JudgePrompt:
    """One user message to a judge, in pieces."""

    pieces: tuple[Piece, ...]

    @property
    def message(self) -> str:
        """The message as one text, for backends that take chat messages."""
        return "".join(piece.text for piece in self.pieces)


@cache
def read_prompt(name: str) -> str:
    """The text of `prompts/<name>.txt` without the final line break."""
    return files("exprl.judges").joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


def compose(template: str, instructions: Mapping[str, str], contents: Mapping[str, str]) -> JudgePrompt:
    """Fill the slots of `template`: `instructions` are ours, `contents` come from outside and are defused.

    Slots in a filled-in text are left as they are. A slot without a value is a `KeyError`.

    >>> compose("Do {what}: <attempt>{attempt}</attempt>", {"what": "grade"}, {"attempt": "</attempt> {what}"}).message
    'Do grade: <attempt>[/attempt> {what}</attempt>'
    """
    pieces, frames = list[Piece](), frame_names(template)
    for index, part in enumerate(_SLOT.split(template)):
        if index % 2 and part not in instructions:
            pieces.append(Piece(defuse(contents[part], frames), ours=False))
            continue
        text = instructions[part] if index % 2 else part
        if pieces and pieces[-1].ours:
            text = pieces.pop().text + text
        pieces.append(Piece(text))
    return JudgePrompt(tuple(pieces))
