r"""Answers that are no mathematics: words, names, dates, times, numerals of a base.

A symbolic library reads `listen` as l*i*s*t*e*n, which is `silent`, and 2020-03-03 as 2014.
"""

from __future__ import annotations

import re

_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" if month != "may" else "may" for month in _MONTHS)
_DATE = re.compile(
    rf"(?i)\d{{4}}-\d{{1,2}}-\d{{1,2}}|\d{{1,2}}/\d{{1,2}}/\d{{2,4}}|\d{{1,2}}\.\d{{1,2}}\.\d{{4}}"
    rf"|.*(?<![a-z])(?:{_MONTH})\.?(?![a-z]).*\d.*|.*\d.*(?<![a-z])(?:{_MONTH})\.?(?![a-z]).*"
)
_TIME = re.compile(r"(?i)(\d{1,2})(?::(\d\d))?(?::(\d\d))?\s*(?:([ap])\.?\s?m\.?)?(?:\s*o'?clock)?")
_NUMERAL = re.compile(r"([0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)\s*_\s*(?:\{\s*(?:\\text\{)?\s*\(?(\w+)\)?\s*\}?\s*\}|(\d))")
_IN_BASE = re.compile(r"(?i)([0-9A-Z]+)\s*(?:\\text\{)?\s*\(?\s*(?:in\s+)?base[- ]?\s*(\w+)\s*\)?\s*\}?")
_BASES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "eleven": 11,
    "twelve": 12,
    "sixteen": 16,
    "binary": 2,
    "octal": 8,
    "decimal": 10,
    "hexadecimal": 16,
}
_FORMULA = re.compile(r"(?:[A-Z][a-z]?(?:_(?:\d|\{\d+\}))?){2,}(?:\^(?:\{\d*[-+]\}|[-+]))?")
_COMMAND = re.compile(r"\\(?:begin|end)\{[a-zA-Z*]*\}|\\(?!text\b)[a-zA-Z]+")
_LETTERS = re.compile(r"[A-Za-z]+")
_FUNCTIONS = re.compile(
    r"(?i)a?(?:rc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|exp|sqrt|max|min|gcd|lcm|det|mod|deg|dim|lim|inf|sup|arg|"
    r"and|for|when|where|rank"
)
_PRODUCT = re.compile(r"[xyz]{3,4}|[abc]{3}|abcd|[pqr]{3}|[uvw]{3}|[mnk]{3}|rst")
_SHORT_WORD = re.compile(r"no|on|is|up|us|we|me|my|so|to|go|he|it|by|be|at|as|am|an|do|in|of|or")
_SEPARATOR = re.compile(r",?\s+and\s+|,")
_NAME = re.compile(r"[^\W\d_]+")
_TRUTH = frozenset(("yes", "no", "true", "false", "right", "wrong", "correct", "incorrect", "t", "f", "y", "n"))
_STOP = frozenset(("a", "an", "the"))


def wording(text: str) -> str | None:
    r"""A key that is equal for equal wordings if `text` is no mathematics; None if it is.

    >>> wording(r"\text{7:30 a.m.}"), wording("7:30 AM")
    ('time 7:30:00 am', 'time 7:30:00 am')
    >>> wording("1011_{2}"), wording("x_2")
    ('base 2: 1011', None)
    >>> wording("listen"), wording("xy")
    ('listen', None)
    """
    spoken = re.sub(r"\s+", " ", re.sub(r"\\text\{([^{}]*)\}", r"\1", text)).strip()
    return _time(spoken) or _date(spoken) or _numeral(text) or _formula(spoken) or _words(text, spoken)


def agreeing_wordings(first: str, second: str) -> bool:
    """Whether two keys say the same; a time without a.m. or p.m. leaves it to the question."""
    if first.startswith("time ") and second.startswith("time "):
        return bool(_hours(first) & _hours(second))
    return first == second


def _hours(key: str) -> set[str]:
    """The times of 24 hours that the key of a time may stand for."""
    clock, *half = key.removeprefix("time ").split()
    hour, after = clock.split(":", 1)
    if int(hour) > 12 or hour == "0":
        hours = {int(hour) % 24}
    else:
        hours = {int(hour) % 12 + 12 * (which == "pm") for which in half or ("am", "pm")}
    return {f"{hour}:{after}" for hour in hours}


def _time(spoken: str) -> str | None:
    match = _TIME.fullmatch(spoken)
    if match is None or not (match[2] or match[4]) or int(match[1]) > 24 or int(match[2] or 0) > 59:
        return None
    half = f" {match[4].lower()}m" if match[4] else ""
    return f"time {int(match[1])}:{match[2] or '00'}:{match[3] or '00'}{half}"


def _date(spoken: str) -> str | None:
    if not _DATE.fullmatch(spoken):
        return None
    words = re.findall(r"[a-z]+|\d+", re.sub(r"(?i)(?<=\d)(?:st|nd|rd|th)\b", "", spoken).lower())
    if not any(word.isalpha() for word in words):
        return f"date {' '.join(word.lstrip('0') for word in words)}"
    months = {month[:3]: month for month in _MONTHS}
    return "date " + " ".join(sorted(months.get(word[:3], word) if word.isalpha() else word for word in words))


def _numeral(text: str) -> str | None:
    match = _NUMERAL.fullmatch(text) or _IN_BASE.fullmatch(text)
    if match is None:
        return None
    written = next(group for group in match.groups()[1:] if group)
    base = _BASES.get(written.lower()) or (int(written) if written.isdecimal() and len(written) < 3 else 0)
    digits = match[1].upper().replace(".", "")
    if not 2 <= base <= 36 or (not any(c.isdigit() for c in digits) and base <= 10):
        return None
    return f"base {base}: {match[1].upper()}" if all(int(c, 36) < base for c in digits) else None


def _formula(spoken: str) -> str | None:
    """H_2O and segment AB: letters whose order counts."""
    return f"formula {re.sub('[{}]', '', spoken)}" if _FORMULA.fullmatch(spoken) else None


def _words(text: str, spoken: str) -> str | None:
    if not _has_words(text):
        return None
    names = [" ".join(_kept(name)) for name in _SEPARATOR.split(spoken)]
    if " and " in spoken and all(_NAME.fullmatch(name) for name in names) and not _TRUTH.intersection(names):
        return " and ".join(sorted(names))  # "John and Mary": only names by themselves are a set
    return " , ".join(filter(None, (" ".join(_kept(part)) for part in spoken.split(",")))) or spoken.casefold()


def _kept(spoken: str) -> list[str]:
    folded = re.sub(r"[^\w\s\\^+*/=<>.:-]|\.(?!\d)|[{}]", " ", spoken.casefold().replace("-", " "))
    words = [word for word in folded.split() if word not in _STOP]
    return [word.removesuffix("s") if len(word) > 3 else word for word in words]


def _has_words(text: str) -> bool:
    """Whether letters stand in `text` that are no product: three and more, or two that are a word or not small."""
    if re.fullmatch(r"[A-Za-z]{2}", text) and (_SHORT_WORD.fullmatch(text) or not text.islower()):
        return True
    without_commands = _COMMAND.sub(" ", text).replace(r"\text", " ")
    return any(
        len(word) > 2 and not _FUNCTIONS.fullmatch(word) and not _PRODUCT.fullmatch(word)
        for word in _LETTERS.findall(without_commands)
    )
