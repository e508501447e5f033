"""Words that belong to a number, and so are no unit: scales multiply it, the others make it something else."""

from __future__ import annotations

import re

_POWERS = {
    "hundred": 2,
    "thousand": 3,
    "million": 6,
    "mn": 6,
    "billion": 9,
    "bn": 9,
    "trillion": 12,
    "tn": 12,
    "quadrillion": 15,
    "quintillion": 18,
}
_FACTORS = {word: rf"10^{{{power}}}" for word, power in _POWERS.items()} | {"dozen": "12"}
_SCALE = re.compile(
    rf"(?i)(?<=[\d}}])\s*(?:\\text\{{\s*({'|'.join(_FACTORS)})s?(?![A-Za-z])\s*([^{{}}]*)\}}"
    rf"|\s({'|'.join(_FACTORS)})s?(?![A-Za-z]))"
)
_CARDINAL = re.compile(
    r"(?i)\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)"
    r"teen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)\b"
)
_OTHER = re.compile(
    r"(?i)\\|\b(?:"
    r"(?:hundred|thousand|[mb]illion|(?:tr|quadr|quint)illion|googol|lakh|crore|dozen|score|gross|myriad)s?"
    r"|half|halves|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|twentieth"
    r"|(?:hundred|thousand|million|billion)th)s?"
    r"|double|triple|quadruple|doubled|tripled|twice|thrice|halved|squared|cubed|cube|factorial|negative|minus|plus|times"
    r"|over|under|above|below|almost|nearly|divided|multiplied|by|raised|powers?|exponent|roots?|sqrt|sin|cos|tan|log|ln"
    r"|exp|pi|tau|euler|infinity|infinite|imaginary|conjugate|inverse|reciprocal|opposite|recurring|repeating"
    r"|fewer|maybe|perhaps|possibly|probably|guess|unsure|wrong|incorrect|false|never|except|without|otherwise|else"
    r")\b|\b(?:square|sq|cubic|cu)\.?\s*$"
)


def with_scales(text: str) -> str:
    r"""`text` with the scale after a number as a factor.

    >>> with_scales(r"5\text{ million dollars}"), with_scales("2 dozen")
    ('5\\cdot 10^{6}\\text{ dollars}', '2\\cdot 12')
    """
    for _ in range(3):  # "5 hundred thousand"
        text = _SCALE.sub(_factor, text)
    return text


def changes_a_number(words: str) -> bool:
    """Whether `words` after a number are no unit of it: "halves", "squared", "plus x", "maybe"."""
    return bool(_OTHER.search(words))


def is_a_number(words: str) -> bool:
    """Whether a number is named among `words`, or a change of one."""
    return bool(_CARDINAL.search(words)) or changes_a_number(words)


def _factor(scale: re.Match[str]) -> str:
    rest = rf"\text{{ {scale[2].strip()}}}" if scale[2] else ""
    return rf"\cdot {_FACTORS[(scale[1] or scale[3]).lower()]}{rest}"
