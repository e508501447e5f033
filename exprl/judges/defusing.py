r"""Text from outside in which nothing looks like the tags of a prompt's frame.

Tags are compared by how they look, not by what they are: case, accents, width and invisible characters do not count, a
letter from another script may look like any, brackets may be any angle or an HTML entity, and other characters may
stand anywhere around the name. What is harmless and looks the same is changed, too: one bracket of it.
"""

from __future__ import annotations

import html
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cache

from exprl.judges.prefixes import Parts, Span, replaced

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
_AROUND = re.compile(rf"{_BESIDE}*+")
_SPREAD = 20
"""More characters than each letter of a name takes: itself, up to eight beside it, and what of an entity is cut."""
_ENTITY = re.compile(
    # What is skipped is captured and repeated, which never backtracks, as `)*+` would: CPython before 3.11.5 gets that
    # wrong for a group.
    r"&(?=(?P<skipped>(?:(?:amp|#0*38|#x0*26);)*))(?P=skipped)"
    r"(?P<entity>(?:#0*+[1-9][0-9]{1,6}|#x0*+[1-9a-f][0-9a-f]{0,5}|[a-z][a-z0-9]{1,31});?)",
    re.IGNORECASE,
)


def defuse(text: str, names: Iterable[str] = FRAMES) -> str:
    r"""`text` with tags of these names made harmless, so that none can be closed or opened from inside.

    >>> defuse("a < b, </attempt> \uff1c/attem\u200bpt foo> <attempts>")
    'a < b, [/attempt> [/attem\u200bpt foo> <attempts>'
    """
    return defused(Parts([text]), tuple(names)).text


def defused(parts: Parts, names: tuple[str, ...] = FRAMES) -> Parts:
    """The same for a text of which prefixes are shown: each has no tag, and begins with the one before, unchanged.

    So a bracket goes where it opens a tag in all of the text, or in any prefix: "</attempts" is a tag up to its `t`.

    >>> defused(Parts(["a</attempt", "s", " <problem", ">"])).parts
    ('a[/attempt', 's', ' [problem', '>')
    """
    text = parts.text
    if text.isascii() and "<" not in text and "&" not in text:
        return parts
    seen = _Seen(text)
    brackets = {bracket for end in parts.ends[:-1] for bracket in seen.brackets_before(end, names)}
    return replaced(parts, sorted(brackets.union(seen.brackets(names))), "[")


class _Seen:
    """What a text looks like, and where in it each look stands."""

    def __init__(self, text: str) -> None:
        self._text = text
        plain, self._ends = _without_entities(text)
        looks = plain.translate(_LOOKS)
        self._places: Sequence[int] = range(len(looks))
        if _INVISIBLE in looks:
            self._places = [place for place, character in enumerate(looks) if character != _INVISIBLE]
            looks = looks.replace(_INVISIBLE, "")
        self._looks = looks

    def brackets(self, names: tuple[str, ...]) -> list[Span]:
        """Where the brackets stand that open a tag."""
        found, behind = [], 0
        for tag in _tags(names).finditer(self._looks):
            if tag["closed"] or re.search(r"[/\\]", tag["beside"]):  # "a <attempt" alone is no tag
                found += [self._span(bracket) for bracket in self._row(tag.start("bracket"), behind)]
                behind = tag.end()
        return found

    def _row(self, bracket: int, behind: int) -> list[int]:
        """A tag's bracket and those right before it, each of which would open the tag once the next is gone."""
        row = [bracket]
        while (before := self._looks.rfind("<", behind, row[-1])) >= 0:
            if not _AROUND.fullmatch(self._looks, before + 1, row[-1]):
                break
            row.append(before)
        return row[::-1]

    def _span(self, bracket: int) -> Span:
        first = self._places[bracket]
        return first, self._ends.get(first, first + 1)

    def brackets_before(self, end: int, names: tuple[str, ...]) -> list[Span]:
        """Those of tags that the text up to `end` has and all of it has not: their names end right there.

        From a tag's bracket to the end of its name no other follows, but the last one here may be an entity's that
        `end` cuts, which is none yet.
        """
        place = bisect_left(self._places, end)
        last = self._looks.rfind("<", 0, place)
        before = self._looks.rfind("<", 0, max(last, 0))
        found = []
        for bracket in (before, last):
            if bracket >= 0 and self._is_near(bracket, place, names):
                start = self._places[bracket]
                own = _Seen(self._text[start:end]).brackets(names)
                found += [(start + first, start + stop) for first, stop in own]
                found += [self._span(earlier) for earlier in self._row(bracket, 0)[:-1] if own]
        return found

    def _is_near(self, bracket: int, place: int, names: tuple[str, ...]) -> bool:
        """Whether no more than a name, with what may stand in it, fits between what follows a bracket and a place."""
        around = _AROUND.match(self._looks, bracket + 1, place)
        assert around is not None
        return place - around.end() <= _SPREAD * max(map(len, names), default=0)


def _without_entities(text: str) -> tuple[str, dict[int, int]]:
    """`text`, each HTML entity as its character, filled up with invisible ones; where an entity starts -> its end."""
    ends: dict[int, int] = {}

    def resolved(entity: re.Match[str]) -> str:
        said = html.unescape(f"&{entity['entity']}")
        length = len(entity[0]) - len(said) + 1  # without what follows `&lt` where no semicolon ends it
        if not said or said == f"&{entity['entity']}" or length < 1:
            return entity[0]
        ends[entity.start()] = entity.start() + length
        return said[0] + _INVISIBLE * (length - 1) + said[1:]

    return _ENTITY.sub(resolved, text), ends


@cache
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
        r"(?=(?P<closed>[^>]{0,100}?>)?)"  # past other brackets: those may go
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
