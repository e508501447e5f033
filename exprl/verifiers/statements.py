"""From what follows "the answer is" to the answer alone: sentences go on after it."""

from __future__ import annotations

import re

from exprl.verifiers.answers import without_marks
from exprl.verifiers.number_words import in_digits

_HEDGE = re.compile(
    r"(?i)(?:(?:therefore|thus|hence|then|so|simply|just|clearly|indeed|actually|exactly|precisely|approximately|about|"
    r"roughly|now|also|equal to|given by|found to be|obviously|definitely|of course|still|again|in fact)\b,?"
    r"|[:=≈~]|\\approx)\s*"
)
_DISPLAYED = re.compile(
    r"(?s)\s*(?:\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\begin\{(?:equation|align|aligned|gather|displaymath|math)\*?\}(.+?)\\end\{)"
)
_INLINE = re.compile(r"(?s)[*_]*(?:\$([^$\n]+)\$|\\\((.+?)\\\))[*_]*")
_CURRENCY = re.compile(r"\$\s*\d[\d,.]*(?:\s|$|[.,;!?])")
_JOINED = re.compile(r"\s*(?:,?\s*(?:and|or)\b|,(?=\s*(?:\$|\\\()))\s*")
_MORE = re.compile(r"^[^.;,!?(\n]*?(?:[$\d\\]|\b(?:or|and|times|plus|minus)\b)")
_REASON = re.compile(  # from where the spaces begin: to try each of them is quadratic
    r"(?i)(?:(?<![\s,;])|(?<=\A[,;]))[\s,;]++\(?(?:because|since|as|which|where|so|when|if|for|by|after|whereas|while|therefore|thus|hence|"
    r"obtained|i\.e|that is|of the|from|using|due|assuming|given)\b"
)
_BOUNDARY = re.compile(
    r"\n|[;?]|!(?=\s|$)|\.(?=\s|$)|\.(?=[*_]+(?:\s|$))"
    r"|,\s+(?!(?:and|or)\b(?!\s+(?:[A-Za-z]{2,}|I)\b))(?=[A-Za-z]{2,}\b(?!\s*=)|I\b|a\s)"
    r"|\s\((?=[A-Za-z]{2,}|[=≈$])|\s(?:--?|–|—)\s+(?=[A-Za-z]{2,})"
)
_VALUE = re.compile(
    r"[-+−±(\[{√]*\s*(?:[€£¥]|\\?\$)?\s*[-+−]?(?:\d|\.\d|[^\W_](?![^\W\d_])|\\(?!text|mathrm|textbf)[a-zA-Z{(])"
)


def stated_value(statement: str) -> str:
    r"""The answer that a statement begins with, without what the sentence says after it.

    >>> stated_value("therefore $42$, as required.")
    '42'
    >>> stated_value("42. We are done.")
    '42'
    >>> stated_value("$1$ or $2$.")
    '1 , 2'
    """
    text = without_hedges(statement.strip().strip("*").lstrip())
    if display := _DISPLAYED.match(text):
        return without_marks(next(group for group in display.groups() if group))
    priced = _CURRENCY.match(text) and text.partition("\n")[0].count("$") % 2
    if not priced and (inline := _INLINE.match(text)):
        return _inline(text, inline)
    return without_marks(_clause(text))


def without_hedges(statement: str) -> str:
    """`statement` from where "therefore", "clearly" or "approximately" end."""
    while hedge := _HEDGE.match(statement):
        statement = statement[hedge.end() :]
    return statement


def begins_like_a_value(statement: str) -> bool:
    """Whether a statement is of a number, in words too, a symbol or mathematics: "the answer is reasonable" is not."""
    value = stated_value(statement)
    return bool(_VALUE.match(value)) or in_digits(value) != value


def _inline(text: str, first: re.Match[str]) -> str:
    """The mathematics of `first`, and what is joined to it by commas, "and" and "or"."""
    parts, end = [first[1] or first[2]], first.end()
    while (joint := _JOINED.match(text, end)) and (following := _INLINE.match(text, joint.end())):
        parts.append(following[1] or following[2])
        end = following.end()
    rest = text[end:]
    reason = _REASON.match(rest)
    unit = rest if reason is None and re.match(r"\s*[A-Za-z%\\]|\s*[-+*/^=<>]", rest) else ""
    if unit and _MORE.match(unit):
        return without_marks(_clause(text))  # "$3$ times $4$": more than one value, which the whole clause shows
    return " , ".join(without_marks(part) for part in parts)


def _clause(text: str) -> str:
    """`text` up to where its sentence ends, or goes on with a reason or a remark."""
    ends = [match.start() for pattern in (_BOUNDARY, _REASON) if (match := pattern.search(text, 1))]
    return text[: min(ends, default=len(text))]
