"""What reaches the terminal or a log: all of it goes through `visible`, none of it is read as markup.

Problem ids, questions, responses, replies of judges and servers, file names and the errors that quote them come from
outside. Raw, they could move the cursor, write the clipboard, reorder a line or break rich's markup.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import lru_cache
from typing import Any

from rich import console as rich_console
from rich.text import Text

_SUSPECT = re.compile(r"[^\n\t\x20-\x7e]")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control and format characters (bidi, zero-width), lone surrogates, line and paragraph ends."""
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Of other categories, and shown as nothing all the same."""


def visible(text: str) -> str:
    r"""`text` with whatever a terminal would obey, or not show, written as an escape; newlines and tabs stay.

    >>> visible("a\x1b]52;c;aGk=\x07b\u202ec\r\n")
    'a\\x1b]52;c;aGk=\\x07b\\u202ec\\r\n'
    """
    return _SUSPECT.sub(lambda found: _shown(found[0]), text)


def line(text: str) -> str:
    r"""`visible` on one line: for names, which could otherwise fake lines of their own.

    >>> line("id\nstep 2/2")
    'id\\nstep 2/2'
    """
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


@lru_cache(maxsize=4096)
def _shown(character: str) -> str:
    if unicodedata.category(character) in _UNSEEN or _BLANK.fullmatch(character):
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character


def styled(*parts: str | tuple[str, str]) -> Text:
    """Pieces of text, each plain or with a style."""
    return Text.assemble(*(visible(p) if isinstance(p, str) else (visible(p[0]), p[1]) for p in parts))


class Console(rich_console.Console):
    """rich's console for text that is not markup; printing on one whose reader is gone does nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed, in a table's cell and title too, comes by here."""
        return super().render_str(visible(text), **options)

    def say(self, *parts: str | tuple[str, str]) -> None:
        """Print a message, its parts plain or styled, and leave it to the terminal where lines break."""
        self.print(styled(*parts), soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Go on without output: rich would end the run."""
        self.quiet = True


def errors() -> Console:
    """The console on standard error."""
    return Console(stderr=True)


def write_document(text: str) -> None:
    """A document on standard output: unchanged into a file or pipe, `visible` on a terminal."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
