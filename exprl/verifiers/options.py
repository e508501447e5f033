"""The options of a multiple-choice question, as they stand in it, and which of them a text is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from exprl.verifiers.answers import without_marks
from exprl.verifiers.notation import folded

_LINE = re.compile(r"(?m)^[\s*_>-]*(?:\(([A-Z])\)|([A-Z])[.):])[*_]*[ \t]+")
_INLINE = re.compile(r"(?<!\S)\(([A-Z])\)\s+")
_STYLE = re.compile(r"\\(?:text|math)(?:bf|rm|it|sf)?\b|[{}$*_`]|\\[()\[\]]")
_ARTICLE = re.compile(r"(?:the|a|an)\s+(?=\S)")
_ENDS = re.compile(
    r"\s*(?:$|[.,;:!)\n]|\(|--?\s|[–—]|(?:because|since|as|which|for|so|that is|due|from|by|rather than|instead of)\b)"
)  # what may follow an option's text in a sentence


_REASONS = re.compile(
    r"[\s,;]*(?:which|because|since|as|due|from|by|for|rather\s+than|instead\s+of)\b(?!.*\b(?:or|and|but|also|too"
    r"|either|equally|maybe|perhaps|possibly|might|may|could|not|no|however|actually|correct|right|wrong|answer|well|both|plus"
    r"|same)\b)(?!.*[?.,;:/&\n–—])"
)
"""A remark that may name other options without choosing them: "which is larger than Mars"."""


def options_of(question: str) -> dict[str, str]:
    """Each option's text by its letter, from A on without a gap; empty for a question that lists none.

    >>> options_of("Which is a metal? (A) iron (B) sulphur")
    {'A': 'iron', 'B': 'sulphur'}
    """
    for pattern in (_LINE, _INLINE):
        marks = list(pattern.finditer(question))
        letters = [next(filter(None, mark.groups())) for mark in marks]
        start = len(letters) - letters[::-1].index("A") - 1 if "A" in letters else len(letters)
        marks, letters = marks[start:], letters[start:]
        if len(letters) > 1 and letters == [chr(ord("A") + place) for place in range(len(letters))]:
            ends = [*(mark.start() for mark in marks[1:]), len(question)]
            texts = (question[mark.end() : end] for mark, end in zip(marks, ends, strict=True))
            return {letter: _first_line(text) for letter, text in zip(letters, texts, strict=True)}
    return {}


def named(statement: str, options: Mapping[str, str], *, whole: bool = False) -> str | None:
    """The letter of the option whose text `statement` is, or begins with and then only gives reasons.

    None too where it names a second one after it, unless in a reason ("which is larger than Mars"), or several options
    say the same. `whole`: it must be nothing else.

    >>> named("iron, since it conducts", {"A": "iron", "B": "sulphur"})
    'A'
    >>> named("iron or sulphur", {"A": "iron", "B": "sulphur"}) is None
    True
    """
    said = _normal(statement)
    texts = {letter: _normal(text) for letter, text in options.items()}
    counts = Counter(texts.values())
    for letter, text in sorted(texts.items(), key=lambda item: -len(item[1])):
        if not text or counts[text] > 1 or not said.startswith(text):
            continue
        rest = said[len(text) :]
        if whole and rest.strip(" ."):
            continue
        if not _ENDS.match(rest):
            continue
        others = (other for name, other in texts.items() if name != letter and other)
        if _REASONS.match(rest) or not any(re.search(rf"(?<!\w){re.escape(other)}(?!\w)", rest) for other in others):
            return letter
    return None


def _first_line(text: str) -> str:
    return without_marks(text.strip().split("\n")[0].rstrip(" ,;"))


def _normal(text: str) -> str:
    """Without marks, style, an article in front and the difference of small and capital letters."""
    plain = " ".join(_STYLE.sub(" ", folded(text)).split()).casefold()
    return _ARTICLE.sub("", plain.removesuffix("."), count=1) if _ARTICLE.match(plain) else plain.removesuffix(".")
