"""Two answers compared as far as text and exact arithmetic go; what is left is for math-verify."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from exprl.verifiers.notation import plain_latex
from exprl.verifiers.number_words import in_digits
from exprl.verifiers.quantities import Number, Quantity, agreeing_units, equal_numbers, read_number, split_unit
from exprl.verifiers.wording import agreeing_wordings, wording

LONGEST = 1000
"""Characters of an answer; what is longer is no final answer and only costs time."""
_DEEPEST = 30
"""Brackets within brackets; the grammar's time grows fast with them."""
_ASSIGNMENT = re.compile(r"((?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?)\s*=\s*(?=[^=<>]+$)")
_NAME = re.compile(r"\s*(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?\s*")
_CALL = re.compile(_NAME.pattern + r"\([^()=<>]*\)\s*")
_CALLED = re.compile(r"\s*((?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?)\(([^()=<>]*)\)\s*=")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_ROUNDING = Fraction(1, 20)
"""Relative: as far apart may be what an equation gives as the same number, exactly and rounded."""
_LISTING = re.compile(r",?\s*(?:\\text\{\s*and\s*\}|\band\b)\s*|,")
_PRIME = re.compile(r"'|\\prime(?![a-zA-Z])")
_SEVERAL = re.compile(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]$")
"""A point or an interval: no number, which saves most comparisons of both the way to a worker."""
_HUGE = re.compile(r"\^\s*\{?\s*\(?\s*-?\d{6}|\d{5}\s*!|!\s*!\s*!|\)\s*!\s*\)\s*!")
_TOWER = re.compile(r"\^\s*[{(]*\s*-?(\d+)\s*\^\s*[{(]*\s*(\d+)(\s*[})]*\s*\^)?")
_LARGEST_EXPONENT_DIGITS = 5


@dataclass(frozen=True)
class Undecided:
    """Pairs of LaTeX (gold, answer): the answers are equal if one of the pairs is."""

    pairs: tuple[tuple[str, str], ...]


def compare(gold: str, answer: str) -> bool | Undecided:
    r"""Whether `answer` is `gold`, or what would have to be equal for it.

    >>> compare("1e-05", r"10^{-5}"), compare("listen", "silent"), compare("5", r"5\text{ cm}")
    (True, False, True)
    >>> compare("x+1", "1+x")
    Undecided(pairs=(('x+1', '1+x'),))
    """
    if max(len(gold), len(answer)) > LONGEST:
        return gold == answer
    first, second = in_digits(plain_latex(gold)), in_digits(plain_latex(answer))
    if not first or not second:
        return False
    if _squeezed(first) == _squeezed(second):
        return True
    if max(len(first), len(second)) > LONGEST:  # 1,000 times ½
        return False
    if _contradicts_itself(first) or _contradicts_itself(second):
        return False
    one, other = split_unit(first), split_unit(second)
    said = wording(one.text), wording(other.text)
    if not agreeing_units(one.unit, other.unit):
        return False
    if said[0] is not None or said[1] is not None:
        return said[0] is not None and said[1] is not None and agreeing_wordings(said[0], said[1])
    if _primes(one.text) != _primes(other.text) or _at_another_place(one.text, other.text):
        return False
    return _compare_values(one, other)


def is_comparable(gold: str) -> bool:
    """Whether any other text than `gold` itself can be found equal to it."""
    return len(gold) <= LONGEST and bool(plain_latex(gold))


def is_costly(latex: str) -> bool:
    r"""Whether to compute with `latex` would take more time or memory than any final answer deserves.

    >>> is_costly("10^{10^{10}}"), is_costly("2^{100}"), is_costly("1000000!"), is_costly("2^{2^{10}}")
    (True, False, True, False)
    """
    return bool(_HUGE.search(latex)) or _depth(latex) > _DEEPEST or any(map(_is_high, _TOWER.finditer(latex)))


def _compare_values(one: Quantity, other: Quantity) -> bool | Undecided:
    one, other = _in_order(one, other)
    undecided: list[tuple[str, str]] = []
    for gold, answer in _readings(one, other):
        number, stated = read_number(gold), read_number(answer)
        equal = equal_numbers(number, stated) if number is not None and stated is not None else None
        if (number or stated) and _SEVERAL.match(answer if number else gold):
            equal = False
        if equal:
            return True
        if equal is None and not (is_costly(gold) or is_costly(answer)):
            undecided.append((gold, answer))
    return Undecided(tuple(undecided)) if undecided else False


def _in_order(one: Quantity, other: Quantity) -> tuple[Quantity, Quantity]:
    """Both as points where one assigns values to several names and the other does, or lists values: each has its place.

    Where both name them, the values stand in the order of the names.
    """
    first, second = _assigned(one.text), _assigned(other.text)
    if first and second and set(first) == set(second):
        return _point([first[name] for name in sorted(first)]), _point([second[name] for name in sorted(first)])
    if first and not second and (listed := _listed(other.text)):
        return _point(list(first.values())), _point(listed)
    if second and not first and (listed := _listed(one.text)):
        return _point(listed), _point(list(second.values()))
    return one, other


def _point(values: list[str]) -> Quantity:
    return Quantity(f"({', '.join(values)})", "")


def _assigned(text: str) -> dict[str, str]:
    """The values of a list of assignments to several names; empty for anything else: x=1, x=2 are two solutions."""
    parts = [(_ASSIGNMENT.match(part), part) for part in _parts(text)]
    values = {match[1]: part[match.end() :] for match, part in parts if match}
    return values if 1 < len(values) == len(parts) else {}


def _listed(text: str) -> list[str]:
    """The values of a list that is in no brackets; empty for anything else."""
    parts = _parts(text)
    return parts if len(parts) > 1 and "=" not in text and not re.search(r"[(\[]|\\\{", text) else []


def _parts(text: str) -> list[str]:
    return [part.strip() for part in _LISTING.split(text) if part.strip()]


def _primes(text: str) -> int:
    """How many times the value is primed: f' is not f."""
    return len(_PRIME.findall(text.rpartition("=")[2]))


def _at_another_place(first: str, second: str) -> bool:
    """Whether both say what the same function is, of two numbers that are not the same: f(3)=5 is not f(2)=5."""
    one, other = _CALLED.match(first), _CALLED.match(second)
    if one is None or other is None or one[1] != other[1]:
        return False
    place, stated = read_number(one[2]), read_number(other[2])
    return place is not None and stated is not None and equal_numbers(place, stated) is False


def _readings(one: Quantity, other: Quantity) -> list[tuple[str, str]]:
    """What may be meant by the two: 50 % is 50 beside another number without a sign, and one half too."""
    first, second = map(_without_ratio, _values(one.text, other.text))
    readings = [(first, second)]
    if one.unit == "%" and not other.unit:
        readings.append((_hundredth(first), second))
    if other.unit == "%" and not one.unit:
        readings.append((first, _hundredth(second)))
    return readings


def _values(first: str, second: str) -> tuple[str, str]:
    """Both without "x =", where only one of them says it or both name the same variable."""
    named, other = _ASSIGNMENT.match(first), _ASSIGNMENT.match(second)
    if named and other and named[1] != other[1]:
        return first, second
    if named and (other or "=" not in second):
        first = first[named.end() :]
    if other and (named or "=" not in first):
        second = second[other.end() :]
    if "=" in first and "=" in second:
        return first, second
    return _solved(first), _solved(second)


def _solved(text: str) -> str:
    """The value that f(2)=5, 5=x or 2+3=5 gives; any other text as it is."""
    left, equals, right = text.partition("=")
    if not equals or re.search(r"[=<>]|\\(?:le|ge|ne)(?![a-zA-Z])", left + right):
        return text
    if _CALL.fullmatch(left):
        return right.strip()
    if "," in text or _has_letters(left):
        return text
    if _NAME.fullmatch(right):
        return left.strip()
    return text if _has_letters(right) else right.strip()


def _has_letters(side: str) -> bool:
    return re.search("[A-Za-z]", _COMMAND.sub("", side)) is not None


def _contradicts_itself(text: str) -> bool:
    """Whether an equation gives two numbers as the same that are not: 6=5 and x=6=5 state no answer."""
    if "=" not in text or "," in text:
        return False
    numbers = [number for side in text.split("=") if (number := read_number(side)) is not None]
    return any(not _may_be_same(numbers[0], number) for number in numbers[1:])


def _may_be_same(first: Number, second: Number) -> bool:
    apart = abs(first.value - second.value)
    rounded = first.decimal or second.decimal
    return not apart or (rounded and apart <= _ROUNDING * max(abs(first.value), abs(second.value)))


def _hundredth(text: str) -> str:
    r"""A hundredth of `text`: in the writing of a plain number where it is one, so that it stays one."""
    return rf"{text}\cdot 10^{{-2}}" if re.fullmatch(r"-?(?:\d+\.?\d*|\.\d+)", text) else rf"\frac{{{text}}}{{100}}"


def _without_ratio(text: str) -> str:
    r"""a:b as a fraction, a:b:c as the fractions of all others by the first; anything else as it is."""
    parts = [part.strip() for part in text.split(":")]
    if len(parts) == 1 or not all(parts) or r"\{" in text or "=" in text:
        return text
    if len(parts) == 2:
        return rf"\frac{{{parts[0]}}}{{{parts[1]}}}"
    return "(" + ", ".join(rf"\frac{{{part}}}{{{parts[0]}}}" for part in parts[1:]) + ")"


def _squeezed(text: str) -> str:
    """Without spaces but for those between digits: 4 2 is not 42."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _is_high(tower: re.Match[str]) -> bool:
    """Whether the exponent b^c of a^{b^c} has too many digits, or goes on."""
    return bool(tower[3]) or len(tower[2]) > 3 or len(tower[1]) * int(tower[2]) > _LARGEST_EXPONENT_DIGITS * 2
