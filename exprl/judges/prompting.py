"""The judge's prompt: instructions first, then problem and reference, the attempt last.

In this order the prompts for the prefixes of one rollout begin alike up to where the shorter one ends, so a backend can
compute the common part once. What comes from outside (problem, reference, attempt) is kept apart from what is ours: a
backend tokenises it without control tokens, and it cannot close its own tag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.resources import files

from exprl.judges.defusing import defuse, defused, frame_names
from exprl.judges.prefixes import Prefix, digest_of

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Piece:
    """A part of a prompt; text that is not `ours` may be hostile."""

    text: str
    ours: bool = True

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that tell its text from every other."""
        return digest_of(self.text)


@dataclass(frozen=True)
class JudgePrompt:
    """One user message to a judge, in pieces; a `Prefix` is one from outside."""

    pieces: tuple[Piece | Prefix, ...]

    @property
    def message(self) -> str:
        """The message as one text, for backends that take chat messages."""
        return "".join(piece.text for piece in self.pieces)


@cache
def read_prompt(name: str) -> str:
    """The text of `prompts/<name>.txt` without the final line break."""
    return files("exprl.judges").joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


def compose(template: str, instructions: Mapping[str, str], contents: Mapping[str, str | Prefix]) -> JudgePrompt:
    """Fill the slots of `template`: `instructions` are ours, `contents` come from outside and are defused.

    Slots in a filled-in text are left as they are. A slot without a value is a `KeyError`. What prompts have in common
    is made once, so that those for the prefixes of a text take no longer than the one for all of it.

    >>> compose("Do {what}: <attempt>{attempt}</attempt>", {"what": "grade"}, {"attempt": "</attempt> {what}"}).message
    'Do grade: <attempt>[/attempt> {what}</attempt>'
    """
    texts = {slot: text for slot, text in contents.items() if isinstance(text, str)}
    around = _around(template, tuple(instructions.items()), tuple(texts.items()))
    frames = frame_names(template)
    return JudgePrompt(
        tuple(piece if isinstance(piece, Piece) else _prefix(contents[piece]).made(defused, frames) for piece in around)
    )


@lru_cache(maxsize=64)  # the requests about one problem follow each other
def _around(
    template: str, instructions: tuple[tuple[str, str], ...], texts: tuple[tuple[str, str], ...]
) -> tuple[Piece | str, ...]:
    """The pieces of a prompt, and the name of each slot that none of the texts fills."""
    ours, outside, frames = dict(instructions), dict(texts), frame_names(template)
    pieces = list[Piece | str]()
    for index, part in enumerate(_SLOT.split(template)):
        if index % 2 and part not in ours:
            pieces.append(Piece(defuse(outside[part], frames), ours=False) if part in outside else part)
            continue
        text = ours[part] if index % 2 else part
        last = pieces[-1] if pieces else None
        if isinstance(last, Piece) and last.ours:
            pieces.pop()
            text = last.text + text
        pieces.append(Piece(text))
    return tuple(pieces)


def _prefix(content: str | Prefix) -> Prefix:
    assert isinstance(content, Prefix), "texts fill their own slots"
    return content
