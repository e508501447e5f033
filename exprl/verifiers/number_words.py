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


_TEENS = "thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_ONES = f"zero one two three four five six seven eight nine ten eleven twelve {_TEENS}".split()
_SMALL = {word: number for number, word in enumerate(_ONES)}
_DECADES = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_TENS = {word: 10 * number for number, word in enumerate(_DECADES, start=2)}
_THOUSANDS = {word: 10**power for word, power in _POWERS.items() if power >= 3 and len(word) > 2}
_ORDINALS = ["third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_PARTS = {"half": 2, "quarter": 4, **{word: number for number, word in enumerate(_ORDINALS, start=3)}}
_IN_WORDS = re.compile(r"(?i)(?:\\text\{)?\s*([a-z]+(?:[ -]+[a-z]+){0,11})\s*\}?")


def in_digits(text: str) -> str:
    r"""`text` in digits if it is a number in words and nothing else, or as it is.

    >>> in_digits("twenty-one"), in_digits("minus two thousand and six"), in_digits(r"\text{two and a half}")
    ('21', '-2006', '2\\frac{1}{2}')
    >>> in_digits("one of them"), in_digits("three two"), in_digits("thirds")
    ('one of them', 'three two', 'thirds')
    """
    match = _IN_WORDS.fullmatch(text)
    words = re.split("[ -]+", match[1].lower()) if match else []
    sign = "-" if words and words[0] in ("minus", "negative") else ""
    said = _mixed(words[len(sign) :])
    return text if said is None else sign + said


def _mixed(words: list[str]) -> str | None:
    """A whole number, a fraction, or both with "and" between."""
    if not words or (part := _PARTS.get("half" if words[-1] == "halves" else words[-1].removesuffix("s"))) is None:
        whole = _whole(words)
        return None if whole is None else str(whole)
    joint = max((place for place, word in enumerate(words) if word == "and"), default=-1)
    before, count = words[: max(joint, 0)], words[joint + 1 : -1]
    above = 1 if count in ([], ["a"]) and not words[-1].endswith("s") else _whole(count)
    whole = _whole(before)
    if above is None or (joint >= 0 and whole is None) or (not count and part not in (2, 4)):
        return None
    return rf"{'' if whole is None else whole}\frac{{{above}}}{{{part}}}"


def _whole(words: list[str]) -> int | None:
    """The whole number that `words` spell; None for anything else, such as numbers one after the other."""
    total, group, largest = 0, None, 10**18
    for place, word in enumerate(words):
        if word in _SMALL or word in _TENS:
            number = _SMALL.get(word) or _TENS.get(word, 0)
            room = 100 if number >= 10 else 10
            if group is not None and (group == 0 or group % room or not number or 10 <= group % 100 < 20):
                return None
            group = (group or 0) + number
        elif word == "hundred" and group is not None and 0 < group < 100:
            group *= 100
        elif word in _THOUSANDS and group and _THOUSANDS[word] <= largest:
            total, group, largest = total + group * _THOUSANDS[word], None, _THOUSANDS[word] // 1000
        elif word != "and" or not place or words[place - 1] not in ("hundred", *_THOUSANDS) or place + 1 == len(words):
            return None
    return total + (group or 0) if group is not None or total else None


def _factor(scale: re.Match[str]) -> str:
    rest = rf"\text{{ {scale[2].strip()}}}" if scale[2] else ""
    return rf"\cdot {_FACTORS[(scale[1] or scale[3]).lower()]}{rest}"
