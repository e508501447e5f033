"""Numbers and their units, read exactly: what most answers are, and what no symbolic library is needed for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from exprl.verifiers.number_words import is_a_number, with_scales

LARGEST_EXPONENT = 1000
"""Of a power of ten; a larger one is left to the worker, where memory and time have limits."""

_DECIMAL = re.compile(r"([-+]?)(\d*)(?:\.(\d*))?")
_FRACTION = re.compile(
    r"([-+]?)(?:(\d+)\s*)?\\frac\s*(?:\{\s*([-+]?\d+)\s*\}|\s*(\d))\s*(?:\{\s*([-+]?\d+)\s*\}|\s*(\d))"
)
_SLASH = re.compile(r"([-+]?\d+)\s*/\s*([-+]?\d+)")
_POWER = re.compile(r"([-+]?)(?:(\d+\.?\d*|\.\d+)\s*(?:\\times|\\cdot|\*)\s*)?10\s*\^\s*(?:\{\s*([-+]?\d+)\s*\}|(\d))")
_FLOAT_DIGITS = 15
"""A number with more digits may be the shortest form of a 64-bit float: 0.1 + 0.2 prints 0.30000000000000004."""

_SIGNIFICANT = 6
"""Digits from which a decimal may stand for an exact value that rounds to it; math_worker.py knows the rest."""

_CURRENCY = re.compile(r"^(-?)(?:\\\$|\$|(€)|(£)|(¥)|US\\?\$|(USD)\s)\s*(?=[\d.])")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*(?:\\?%|percent(?:age)?|pct)\s*\}|\b(?:percent(?:age)?|pct))\s*$")
_DEGREE = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*(?:\\text\{\s*([CF])\s*\}|([CF]))?\s*$")
_TAIL = re.compile(
    r"(?:(?<![A-Za-z\\])(?=[A-Za-z])|(?=[^A-Za-z]))"  # not from within a word or command
    r"(?:\\text\{[^{}]*\}|[A-Za-z./·\s]|(?<!\d)\^(?:\d|\{-?\d\})|(?<=[A-Za-z])-)+$"
)
_MEASURED = re.compile(r"(?:[\d})|]|\\pi)\s*$")
_POWERS = re.compile(r"\^\{?(-?\d)\}?")
NO_UNIT = re.compile(
    r"(?i)\b(?:or|and|not|to|more|less|than|least|most|of|if|for|when|where|mod|modulo|from|between|per cent|"
    r"a\.?m\.?|p\.?m\.?|noon|midnight|o'?clock|bc|ad|bce|ce|th|st|nd|rd|january|february|march|april|may|june|july|"
    r"august|september|october|november|december|i|base|is|are|times)\b"
)
_NAMES = {
    name: unit
    for unit, names in {
        "cm": "centimeter centimetre", "mm": "millimeter millimetre", "km": "kilometer kilometre kms",
        "m": "meter metre", "ft": "foot feet", "in": "inch inche", "yd": "yard", "mi": "mile",
        "s": "second sec", "min": "minute", "h": "hour hr", "d": "day", "wk": "week", "mo": "month", "yr": "year",
        "g": "gram gramme gm", "kg": "kilogram kgs", "mg": "milligram", "lb": "pound lbs", "oz": "ounce",
        "l": "liter litre", "ml": "milliliter millilitre", "gal": "gallon", "cup": "", "acre": "", "ha": "hectare",
        "$": "dollar usd buck", "cent": "¢", "€": "euro eur", "°": "degree deg", "rad": "radian",
        "mi/h": "mph", "km/h": "kph kmph", "n": "newton", "j": "joule", "w": "watt", "v": "volt", "hz": "hertz",
        "a": "amp ampere", "k": "kelvin", "pa": "pascal", "mol": "mole", "t": "ton tonne",
    }.items()
    for name in (unit, *names.split())
}  # fmt: skip
_FILLERS = {"unit", "in", "number", "integer", "point"}


@dataclass(frozen=True)
class Number:
    """An exact value and how it was written: `digits` significant ones, with a point or power of ten if `decimal`."""

    value: Fraction
    decimal: bool = False
    digits: int = 0


@dataclass(frozen=True)
class Quantity:
    """What is left of an answer without its unit, and the unit in one spelling; an empty one is none."""

    text: str
    unit: str


def read_number(text: str) -> Number | None:
    r"""The number that `text` is, exactly; None if it is anything else.

    >>> read_number(r"1\frac{1}{2}").value
    Fraction(3, 2)
    >>> read_number(r"-2.5\cdot 10^{-8}").value
    Fraction(-1, 40000000)
    """
    text = text.strip()
    return _decimal(text) or _scientific(text) or _fraction(text)


def equal_numbers(first: Number, second: Number) -> bool | None:
    """Whether two numbers are the same; None if one may be the other rounded, which takes more than arithmetic.

    Values are compared as they are written. Where one is written with more digits than a 64-bit float has, the last
    of them say nothing, so that a relative difference below 1e-15 counts as none.
    """
    if first.value == second.value:
        return True
    decimals = [number for number in (first, second) if number.decimal]
    if any(number.digits > _FLOAT_DIGITS for number in decimals):
        difference, size = abs(first.value - second.value), max(abs(first.value), abs(second.value))
        if difference * 10**_FLOAT_DIGITS <= size:
            return True
    return None if len(decimals) == 1 and decimals[0].digits >= _SIGNIFICANT else False


def split_unit(text: str) -> Quantity:
    r"""`text` without the unit, currency, percent or degree sign around its number.

    >>> split_unit(r"5\text{ square feet}")
    Quantity(text='5', unit='ft^2')
    >>> split_unit("5x")
    Quantity(text='5x', unit='')
    >>> split_unit(r"\$5\text{ million}")
    Quantity(text='5\\cdot 10^{6}', unit='$')
    """
    text = with_scales(text)
    if match := _PERCENT.search(text):
        return Quantity(text[: match.start()].strip(), "%" if match.start() else "")
    if (match := _DEGREE.search(text)) and match.start():
        return Quantity(text[: match.start()].strip(), f"°{match[1] or match[2] or ''}")
    if match := _CURRENCY.match(text):
        symbol = next((found for found in match.groups()[1:] if found), "$")
        rest = split_unit(text[match.end() :])  # "$18 dollars"
        return Quantity(match[1] + rest.text, "$" if symbol == "USD" else symbol)
    return _split_words(text)


def agreeing_units(first: str, second: str) -> bool:
    """Whether two units may be the same: an answer without one leaves it to the question."""
    return (
        not first or not second or first == second or {first, second} == {"°", "°C"} or {first, second} == {"°", "°F"}
    )


def _split_words(text: str) -> Quantity:
    """A unit begins after a digit or a closing bracket and goes on, without digits but in exponents, to the end."""
    if (match := _TAIL.search(text)) and _MEASURED.search(text[: match.start()]):
        value, tail = text[: match.start()].rstrip(), match[0]
        if (unit := _unit(value, tail)) is not None:
            return Quantity(value, unit)
    return Quantity(text, "")


def _unit(value: str, tail: str) -> str | None:
    """The unit that `tail` is, an empty string where it says nothing; None if it is none."""
    inside = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", tail)
    words = re.sub(r"[/·.]|\^\{?-?\d\}?", " ", inside).split()
    if not words or not re.search(r"\d", value) or re.search(r"\d", "".join(words)):
        return None
    if (NO_UNIT.search(inside) and inside.strip().lower() != "in") or is_a_number(inside):
        return None
    known = [_singular(word) in _NAMES for word in words]
    is_apart = tail[0].isspace() or tail.startswith(r"\text")
    if not is_apart and not (known[0] and len(words[0]) > 1):
        return None  # 5x, 3ab
    if r"\text" not in tail and any(
        len(word) < 3 and not is_known for word, is_known in zip(words, known, strict=True)
    ):
        return None  # 2 xy
    return _spelled(inside)


def _spelled(unit: str) -> str:
    """One spelling for each unit: "square feet", "ft^2" and "sq. ft." are the same."""
    power, parts = "", []
    for token in re.findall(r"[^\s/·.^{}]+|/|\^\{?-?\d\}?", unit):
        word = _singular(token)
        if word in ("square", "sq", "cubic", "cu"):
            power = "^2" if word.startswith("s") else "^3"
        elif word in ("per", "/"):
            parts.append("/")
        elif exponent := _POWERS.fullmatch(token):
            parts.append(f"^{exponent[1]}")
        elif word not in _FILLERS or unit.strip().lower() == "in":
            parts.append(_NAMES.get(word, word) + power)
            power = ""
    spelled = "".join(part if part[0] in "/^" else f" {part}" for part in parts).strip().replace("/ ", "/")
    return "" if spelled in ("^2", "^3") else spelled


def _singular(word: str) -> str:
    word = word.lower().rstrip(".")
    if word in _NAMES or len(word) < 4:
        return word
    return word.removesuffix("s")


def _decimal(text: str) -> Number | None:
    match = _DECIMAL.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return None
    whole, after = match[2] or "", match[3] or ""
    value = Fraction(int(whole + after), 10 ** len(after))
    digits = len((whole + after).lstrip("0"))
    return Number(-value if match[1] == "-" else value, bool(after), digits)


def _scientific(text: str) -> Number | None:
    match = _POWER.fullmatch(text)
    if match is None:
        return None
    exponent = int(match[3] or match[4])
    if abs(exponent) > LARGEST_EXPONENT:
        return None
    factor = _decimal(match[2]) if match[2] else Number(Fraction(1))
    assert factor is not None
    value = factor.value * Fraction(10) ** exponent
    return Number(-value if match[1] == "-" else value, factor.decimal, factor.digits)


def _fraction(text: str) -> Number | None:
    if match := _SLASH.fullmatch(text):
        sign, whole, above, below = "", None, int(match[1]), int(match[2])
    elif match := _FRACTION.fullmatch(text):
        sign, whole = match[1], match[2]
        above, below = int(match[3] or match[4]), int(match[5] or match[6])
    else:
        return None
    if below == 0:
        return None
    value = int(whole or 0) + Fraction(above, below)
    return Number(-value if sign == "-" else value)
