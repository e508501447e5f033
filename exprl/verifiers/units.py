"""Units of measurement: what one is in the base units of the SI, exactly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

LARGEST_POWER = 12
"""Of a factor; more is no unit."""


@dataclass(frozen=True)
class Unit:
    """A unit: `factor` times a product of base units, each with its power; none of them for plain numbers."""

    factor: Fraction = Fraction(1)
    dimensions: Mapping[str, int] = field(default_factory=dict)

    def times(self, other: Unit, power: int = 1) -> Unit:
        """The product with a power of another."""
        powers = Counter(self.dimensions)
        for name, own in other.dimensions.items():
            powers[name] += own * power
        return Unit(self.factor * other.factor**power, {name: own for name, own in powers.items() if own})


def _unit(factor: str | int, **dimensions: int) -> Unit:
    return Unit(Fraction(factor), dimensions)


_PREFIXES = {
    "": 0, "f": -15, "p": -12, "n": -9, "µ": -6, "μ": -6, "u": -6, "m": -3, "c": -2, "d": -1, "h": 2, "k": 3, "M": 6,
    "G": 9, "T": 12,
}  # fmt: skip
_PREFIX_WORDS = {
    "": 0, "femto": -15, "pico": -12, "nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1, "hecto": 2,
    "kilo": 3, "mega": 6, "giga": 9, "tera": 12,
}  # fmt: skip
_CELSIUS = _unit(1, celsius=1)
"""Of a scale that does not begin at zero: it is converted to no other."""

_PREFIXED = {  # symbols | names that are written out
    "m | meter metre": _unit(1, m=1), "g | gram gramme": _unit("1/1000", kg=1), "s | sec second": _unit(1, s=1),
    "A | ampere amp": _unit(1, A=1), "K | kelvin": _unit(1, K=1), "mol | mole": _unit(1, mol=1),
    "N | newton": _unit(1, kg=1, m=1, s=-2), "J | joule": _unit(1, kg=1, m=2, s=-2),
    "W | watt": _unit(1, kg=1, m=2, s=-3), "Pa | pascal": _unit(1, kg=1, m=-1, s=-2),
    "Hz | hertz": _unit(1, s=-1, cycle=1), "C | coulomb": _unit(1, A=1, s=1),
    "V | volt": _unit(1, kg=1, m=2, s=-3, A=-1), "Ω | ohm": _unit(1, kg=1, m=2, s=-3, A=-2),
    "F | farad": _unit(1, kg=-1, m=-2, s=4, A=2), "T | tesla": _unit(1, kg=1, s=-2, A=-1),
    "Wb | weber": _unit(1, kg=1, m=2, s=-2, A=-1), "H | henry": _unit(1, kg=1, m=2, s=-2, A=-2),
    "S | siemens": _unit(1, kg=-1, m=-2, s=3, A=2), "Bq | becquerel": _unit(1, s=-1, decay=1),
    "L l | liter litre": _unit("1/1000", m=3), "M | molar": _unit(1000, mol=1, m=-3),
    "eV | electronvolt": _unit("1.602176634e-19", kg=1, m=2, s=-2), "cal | calorie": _unit("4.184", kg=1, m=2, s=-2),
    "Wh": _unit(3600, kg=1, m=2, s=-2), "Nm": _unit(1, kg=1, m=2, s=-2), "Ah": _unit(3600, A=1, s=1),
    "bar": _unit(100_000, kg=1, m=-1, s=-2), "rad | radian": _unit(1, rad=1), "cd | candela": _unit(1, cd=1),
    "lm | lumen": _unit(1, lumen=1), "lx | lux": _unit(1, lumen=1, m=-2), "Gy | gray": _unit(1, m=2, s=-2),
    "Sv | sievert": _unit(1, sievert=1),
}  # fmt: skip
_WHOLE = {
    "min | minute": _unit(60, s=1), "h hr | hour": _unit(3600, s=1), "d | day": _unit(86400, s=1),
    "wk | week": _unit(604800, s=1), "yr | year": _unit(31_557_600, s=1), "t | ton tonne": _unit(1000, kg=1),
    "ft | foot feet": _unit("0.3048", m=1), "in | inch inches": _unit("0.0254", m=1),
    "mi | mile": _unit("1609.344", m=1), "lb | pound lbs": _unit("0.45359237", kg=1),
    "mph": _unit("0.44704", m=1, s=-1),
    "kmh kph": _unit("5/18", m=1, s=-1), "ha | hectare": _unit(10_000, m=2),
    "atm | atmosphere": _unit(101_325, kg=1, m=-1, s=-2), 
    "yd | yard": _unit("0.9144", m=1), "oz | ounce": _unit("0.028349523125", kg=1), "dB | decibel": _unit(1, decibel=1),
    "AU au": _unit(149_597_870_700, m=1), "Å | angstrom": _unit("1e-10", m=1),
    "ly": _unit(9_460_730_472_580_800, m=1), 
    "% | percent": _unit("1/100"), "1": _unit(1), "°C degC | celsius": _CELSIUS,
    "°F degF | fahrenheit": _unit(1, fahrenheit=1), "° deg | degree": _unit(1, degree=1),
}  # fmt: skip


def _symbols() -> dict[str, Unit]:
    """Units by their symbols, whose case counts."""
    scaled = {
        prefix + symbol: unit.times(Unit(Fraction(10) ** power))
        for names, unit in _PREFIXED.items()
        for symbol in names.partition("|")[0].split()
        for prefix, power in _PREFIXES.items()
    }
    return scaled | {name: unit for names, unit in _WHOLE.items() for name in names.partition("|")[0].split()}


def _words() -> dict[str, Unit]:
    """Units by their names, one and several."""
    found = dict[str, Unit]()
    for table, prefixes in ((_PREFIXED, _PREFIX_WORDS), (_WHOLE, {"": 0})):
        for names, unit in table.items():
            for word in names.partition("|")[2].split():
                for prefix, power in prefixes.items():
                    scaled = unit.times(Unit(Fraction(10) ** power))
                    found |= {f"{prefix}{word}": scaled, f"{prefix}{word}s": scaled}
    return found


_SYMBOLS, _WORDS = _symbols(), _words()

_TOKEN = re.compile(
    r"\^\{?(?P<power>[-+]?\d{1,3})\}?|(?P<name>[A-Za-zÅµμΩ%°]+|1(?=\s*\)?\s*/))|(?P<sign>[/()])|(?P<joint>[\s·⋅*]+)"
)
_REPLACED: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\^\s*\{\s*([-+]?\d{1,3})\s*\}"), r"^\1 "),
    (re.compile(r"\\(?:text|mathrm|mathsf|rm)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"(\1)/(\2)"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?\s*"), "°"),
    (re.compile(r"\\(?:cdot|times)(?![A-Za-z])|\\[,;:! ]|~"), " "),
    (re.compile(r"\\(?:Omega|ohm)(?![A-Za-z])"), "Ω"),
    (re.compile(r"\\mu(?![A-Za-z])\s*"), "µ"),
    (re.compile(r"\\%"), "%"),
    (re.compile("Ω"), "Ω"),
    (re.compile(r"(?i)\bdegrees?\s+(celsius|fahrenheit)\b|°\s*([CF])\b"), lambda m: f"deg{(m[1] or m[2])[0].upper()}"),
    (re.compile(r"(?i)\b(square|sq\.?|cubic|cu\.?)\s+([A-Za-z]+)"), lambda m: f"{m[2]}^{2 if m[1][0] in 'sS' else 3}"),
    (re.compile(r"(?i)\b([A-Za-z]+)\s+(squared|cubed)\b"), lambda m: f"{m[1]}^{2 if m[2][0] in 'sS' else 3}"),
    (re.compile(r"(?<=[A-Za-z])-(?=[A-Za-z])"), " "),
    (re.compile(r"(?i)\s*\bper\b\s*"), "/"),
]


_COUNTED = frozenset({"cycle", "decay", "rad"})
"""What a unit counts: it may go unsaid in another, 1/s, but cycles are no decays and no radians."""


def same_kind(first: Unit, second: Unit) -> bool:
    """Whether two units measure the same; a number alone counts nothing, so that 0.5 is not 0.5 rad.

    >>> [same_kind(read_unit(one), read_unit(other)) for one, other in [("Hz", "1/s"), ("Hz", "rad/s"), ("rad", "")]]
    [True, False, False]
    """
    counts, others = zip(*map(_split_counts, (first, second)), strict=True)
    return others[0] == others[1] and (counts[0] == counts[1] or (bool(others[0]) and not all(counts)))


def _split_counts(unit: Unit) -> tuple[dict[str, int], dict[str, int]]:
    counts = {name: power for name, power in unit.dimensions.items() if name in _COUNTED}
    return counts, {name: power for name, power in unit.dimensions.items() if name not in _COUNTED}


def read_unit(text: str) -> Unit | None:
    r"""The unit that `text` writes, in symbols, words or LaTeX; None where any of it is none. No text is no unit.

    >>> read_unit("kg m/s^2") == read_unit(r"\text{N}"), read_unit("km per hour").factor
    (True, Fraction(5, 18))
    >>> read_unit("apples") is None, read_unit("")
    (True, Unit(factor=Fraction(1, 1), dimensions={}))
    """
    for pattern, new in _REPLACED:
        text = pattern.sub(new, text)
    try:
        tokens = list(_tokens(text.strip()))
        unit, rest = _product(tokens)
    except ValueError:
        return None
    return unit if not rest else None


def _tokens(text: str) -> Iterator[re.Match[str]]:
    end = 0
    while end < len(text):
        match = _TOKEN.match(text, end)
        if match is None:
            raise ValueError(text)
        end = match.end()
        if match["joint"] is None:
            yield match


def _product(tokens: list[re.Match[str]]) -> tuple[Unit, list[re.Match[str]]]:
    """The product of factors up to a closing bracket or the end; a stroke divides by the one factor after it."""
    unit, divides = Unit(), False
    while tokens and tokens[0][0] != ")":
        if tokens[0][0] == "/":
            if divides:
                raise ValueError("//")
            divides, tokens = True, tokens[1:]
            continue
        factor, tokens = _factor(tokens)
        power = 1
        if tokens and tokens[0]["power"] is not None:
            power, tokens = int(tokens[0]["power"]), tokens[1:]
        if abs(power) > LARGEST_POWER:
            raise ValueError("power")
        unit, divides = unit.times(factor, -power if divides else power), False
    if divides:
        raise ValueError("/ at the end")
    return unit, tokens


def _factor(tokens: list[re.Match[str]]) -> tuple[Unit, list[re.Match[str]]]:
    if tokens[0][0] == "(":
        unit, rest = _product(tokens[1:])
        if not rest:
            raise ValueError("(")
        return unit, rest[1:]
    name = tokens[0]["name"]
    found = None if name is None else _SYMBOLS.get(name) or _WORDS.get(name.lower())
    if found is None:
        raise ValueError(name)
    return found, tokens[1:]
