r"""Text from outside in which nothing looks like the tags of a prompt's frame.

Tags are compared by how they look, not by what they are: case, accents, width and invisible characters do not count, a
letter from another script may look like any, brackets may be any angle or an HTML entity, and other characters may
stand anywhere around the name. What is harmless and looks the same is changed, too: one bracket of it.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable
from functools import cache

FRAMES = ("problem", "reference", "attempt")
"""The names of the frames in exprl's own prompts."""

_INVISIBLE, _OTHER_LETTER, _OTHER_SYMBOL = "\0", "\1", "\2"  # what characters become that look like no ASCII one
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and symbols without any ink
_ANGLES = {
    "<": re.compile(r"LESS-THAN(?! OR)|LEFT.*ANGLE|LEFT ARROWHEAD|PRECEDES$"),
    ">": re.compile(r"GREATER-THAN(?! OR)|RIGHT.*ANGLE|RIGHT ARROWHEAD|SUCCEEDS$"),
}
_DRAWN = {
    **dict.fromkeys("\u1438\u16b2\u304f\u3111\u3031", "<"),
    **dict.fromkeys("\u1433\u1fef", ">"),
    **dict(zip("€¢£¥©®†₮₥₱₳∈℮", "eclycrttmpaee", strict=True)),
    **dict.fromkeys("\u2044\u2215\u29f8\u2571\u27cb\u3033\u30ce\uff89\u4e3f", "/"),
}
_SWAPPED = {"a": "4@", "b": "8", "e": "3", "i": "1l|", "l": "1i|", "o": "0", "s": "5$", "t": "7+"}
_BESIDE = rf"[^a-z0-9<>{_OTHER_LETTER}]"  # what a name is not made of
_ENTITY = re.compile(
    r"&(?:(?:amp|#0*38|#x0*26);)*+((?:#0*+[1-9][0-9]{1,6}|#x0*+[1-9a-f][0-9a-f]{0,5}|[a-z][a-z0-9]{1,31});?)",
    re.IGNORECASE,
)


def defuse(text: str, names: Iterable[str] = FRAMES) -> str:
    r"""`text` with tags of these names made harmless, so that none can be closed or opened from inside.

    >>> defuse("a < b, </attempt> \uff1c/attem\u200bpt foo> <attempts>")
    'a < b, [/attempt> [/attem\u200bpt foo> <attempts>'
    """
    plain, ends = _without_entities(text)
    looks = plain.translate(_LOOKS)
    places = None
    if _INVISIBLE in looks:
        places = [place for place, character in enumerate(looks) if character != _INVISIBLE]
        looks = looks.replace(_INVISIBLE, "")
    pieces, end = [], 0
    for tag in _tags(tuple(names)).finditer(looks):
        if not tag["closed"] and not re.search(r"[/\\]", tag["beside"]):
            continue  # "a <attempt" alone is no tag
        first, last = tag.start("bracket"), tag.end("bracket") - 1
        if places is not None:
            first, last = places[first], places[last]
        pieces += [text[end:first], "["]
        end = ends.get(first, last + 1)
    return "".join([*pieces, text[end:]])


def _without_entities(text: str) -> tuple[str, dict[int, int]]:
    """`text`, each HTML entity as its character, filled up with invisible ones; where an entity starts -> its end."""
    ends: dict[int, int] = {}

    def resolved(entity: re.Match[str]) -> str:
        said = html.unescape(f"&{entity[1]}")
        length = len(entity[0]) - len(said) + 1  # without what follows `&lt` where no semicolon ends it
        if not said or said == f"&{entity[1]}" or length < 1:
            return entity[0]
        ends[entity.start()] = entity.start() + length
        return said[0] + _INVISIBLE * (length - 1) + said[1:]

    return _ENTITY.sub(resolved, text), ends


def frame_names(template: str) -> tuple[str, ...]:
    """The names of the tags in a prompt's template.

    >>> frame_names("<problem>{problem}</problem> <x y>")
    ('problem',)
    """
    return tuple(dict.fromkeys(name.lower() for name in re.findall(r"<(\w+)>", template)))


@cache
def _tags(names: tuple[str, ...]) -> re.Pattern[str]:
    """A tag: bracket, what may stand around a name, the name, and perhaps the closing bracket. Linear in the text."""
    any_name = "|".join(rf"{_BESIDE}{{0,8}}".join(map(_letter, name)) for name in names) or "(?!)"
    return re.compile(
        rf"(?P<bracket><)(?P<beside>{_BESIDE}*+)(?:{any_name})(?![a-z0-9{_OTHER_LETTER}])"
        rf"(?P<closed>[^<>]{{0,100}}?>)?"
    )


def _letter(letter: str) -> str:
    look_alikes = f"[{re.escape(letter + _SWAPPED.get(letter, ''))}{_OTHER_LETTER}]"
    return f"(?:{look_alikes}|rn)" if letter == "m" else look_alikes


class _Looks(dict[int, str]):
    """What one character looks like, as one character; made when first met."""

    def __missing__(self, code: int) -> str:
        self[code] = look = _look(chr(code))
        return look


_LOOKS = _Looks()


def _look(character: str) -> str:
    if character.isascii():
        return character.lower() if character.isprintable() or character.isspace() else _INVISIBLE
    if character.isspace():
        return " "
    name = unicodedata.name(character, "")
    for sign, pattern in _ANGLES.items():
        if pattern.search(name):
            return sign
    if character in _DRAWN:
        return _DRAWN[character]
    seen = [part for part in unicodedata.normalize("NFKD", character) if not _is_invisible(part)]
    if not seen:
        return _INVISIBLE
    if len(seen) == 1 and seen[0].isascii():
        return seen[0].lower()
    return _OTHER_LETTER if any(part.isalnum() for part in seen) else _OTHER_SYMBOL


def _is_invisible(character: str) -> bool:
    """Whether a character adds nothing of its own: combining, format, control and unassigned ones, and fillers."""
    return unicodedata.category(character) in {"Mn", "Me", "Mc", "Cf", "Cc", "Cn"} or character in _FILLERS
