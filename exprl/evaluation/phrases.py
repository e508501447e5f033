"""English phrases by which the four behaviours are recognised, and how they are looked for in long traces.

A pattern is searched only around words that each of its matches holds, which few places of a trace do; every pattern is
bounded, so that no match lies further from such a word than `REACH`. The verdicts are those of a search of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

REACH = 200
"""Characters that a match may extend before and behind its word."""

Span = tuple[int, int]

# Problems are full of people who check, return and try again. So a pattern asks for the writer (`let me`, `we should`)
# or for something only a solution has (`my answer`, `step 3`, `another method`).
_WE = (
    r"\b(?:let me|let's|let us|(?:i|we)(?:'ll| will| can| could| should| must| need to| have to)?) "
    r"(?:just |now |also |quickly |instead |perhaps |actually |first ){0,8}"
)
# where a sentence or line begins
_SAYS = r"(?:^|[.!?:\n]\s{0,8})(?:(?:so|now|okay|ok|hmm|wait|but|no)[,. ]{1,8}){0,8}"
_WORK = (
    r"(?:final |last |previous )?(?:answers?|results?|work|working|calculations?|computation|arithmetic|algebra|"
    r"solutions?|steps?|reasoning|equations?|conditions?)\b"
)
_WORD = r"\w{1,40}"
_WAY = r"(?:approach|method|way|strategy|idea|path|angle|route|technique|formula|substitution)\b"
_OTHER = rf"(?:a |an |some |the )?(?:{_WORD} )?(?:different|another|other|alternative|new|fresh)"
_EARLIER = (
    r"(?:step|equation|line|case|(?:the|my|our) (?:previous|earlier|original|first|last|start|beginning|definition))\b"
)
_WRONG = (
    r"(?:(?:'s| is| was| looks| seems) (?:wrong|incorrect|not right|not correct|a mistake|an error|off)|"
    r" (?:isn't|can't be|cannot be|doesn't look) (?:right|correct))\b"
)
_WRONG_WORDS = ("wrong", " right", "correct", "mistake", "error", " off")


@dataclass(frozen=True)
class Phrase:
    """A pattern of normal text, and words of which every match holds one."""

    pattern: str
    words: tuple[str, ...]


PHRASES: Mapping[str, tuple[Phrase, ...]] = {
    "verification": (
        Phrase(rf"{_WE}(?:double|re|cross|sanity)[- ]?check\b", ("check",)),
        Phrase(
            rf"{_WE}(?:verify|confirm|check) (?:if |whether |that |this\b|it\b|each step)",
            ("verify", "confirm", "check"),
        ),
        Phrase(
            rf"\b(?:check|verify|confirm|test)(?:ing)? (?:this|that|my|our|the|these|each|both) {_WORK}",
            ("check", "verify", "confirm", "test ", "testing "),
        ),
        Phrase(rf"\b(?:double|re|cross|sanity)[- ]?check(?:ing)? (?:my|our|this|that|the) {_WORK}", ("check",)),
        Phrase(
            rf"\b(?:plug|put|substitut)\w{{0,20}} (?:this|that|it|them|these|the {_WORD}|[a-z] ?= ?\S{{1,80}}) back\b",
            ("back",),
        ),
        Phrase(r"\b(?:as a (?:quick |sanity )?|quick |sanity )check\b", ("check",)),
        Phrase(rf"{_SAYS}(?:check|verification)\s{{0,8}}:", ("check", "verification")),
        Phrase(r"\b(?:which|this) (?:checks out|confirms (?:the|my|our|that))\b", ("check", "confirm")),
    ),
    "self_correction": (
        Phrase(
            rf"\b(?:i|we)(?:'ve| have)? made (?:a|an|some|the|another) (?:{_WORD} )?(?:mistake|error|slip)\b",
            (" made ",),
        ),
        Phrase(
            r"\b(?:i|we)(?:'ve| have)? (?:mis(?:calculated|read|counted|computed|stated|applied)|mixed up)\b",
            (" mis", "mixed up"),
        ),
        Phrase(r"\b(?:i|we) (?:was|were|am) (?:wrong|mistaken|incorrect)\b", ("wrong", "mistake", "correct")),
        Phrase(r"\bmy (?:mistake|error|bad)\b", ("mistake", "error", "my bad")),
        Phrase(rf"{_SAYS}(?:oops|correction|scratch that)\b", ("oops", "correct", "scratch that")),
        Phrase(
            rf"\b(?:wait|hmm|no|oops|actually)\b[,.! ]{{1,8}}(?:no[, ]{{1,8}})?(?:that|this|it){_WRONG}", _WRONG_WORDS
        ),
        Phrase(rf"{_SAYS}(?:that|this){_WRONG}", _WRONG_WORDS),
        Phrase(
            rf"{_WE}(?:fix|correct|redo|recompute|recalculate) (?:this|that|it|my|the|these)\b",
            ("fix ", "correct", "redo ", "recompute", "recalculate"),
        ),
    ),
    "backtracking": (
        Phrase(rf"{_WE}(?:go|step|turn|come|jump) back to {_EARLIER}", ("back",)),
        Phrase(rf"{_WE}(?:go|step) back(?: and\b|[.,:;]| a (?:step|bit|moment))", ("back",)),
        Phrase(rf"{_WE}(?:backtrack|rewind|retrace|undo)\b", ("back", "rewind", "retrace", "undo")),
        Phrase(
            rf"\b(?:going|stepping|turning|returning) (?:back )?to {_EARLIER}",
            ("going to ", "stepping to ", "turning to ", "back"),
        ),
        Phrase(rf"{_WE}return to {_EARLIER}", ("return to ",)),
        Phrase(rf"{_SAYS}(?:back to {_EARLIER}|backtracking\b)", ("back",)),
        Phrase(
            r"\b(?:i|we|this|it)(?:'ve| have| has|'s)? (?:reached|hit|is|at|leads to|led to) a dead end\b",
            ("dead end",),
        ),
        Phrase(
            r"\bthis(?: path| route| approach| way)? (?:leads|led|goes|gets us|is getting us) nowhere\b", ("nowhere",)
        ),
    ),
    "exploration": (
        Phrase(
            rf"{_WE}(?:try|consider|use|take|explore|look for|think of|find|attempt) {_OTHER} {_WAY}",
            ("different", "another", " other ", "alternative", " new ", " fresh "),
        ),
        Phrase(
            rf"{_WE}(?:approach|attack|look at|think about|see) (?:this|it|the problem) (?:differently\b|another way\b|"
            r"(?:from|in) (?:a different|another)\b)",
            ("different", "another"),
        ),
        Phrase(
            rf"\b(?:another|a different|an alternative) {_WAY} (?:is|would be|might|could|to (?:solve|see|do|get))\b",
            ("another", "different", "alternative"),
        ),
        Phrase(rf"{_WE}(?:start|begin) (?:all )?(?:over|again|afresh|anew|from scratch)\b", ("start", "begin")),
        Phrase(
            rf"{_SAYS}(?:starting|beginning) (?:all )?(?:over|again|afresh|anew|from scratch)\b",
            ("start", "begin"),
        ),
        Phrase(rf"{_SAYS}(?:alternatively\b|another {_WAY})", ("alternative", "another")),
        Phrase(
            r"\bwhat if (?:i|we) (?:try|tried|use|used|consider|instead|start|started|rewrite|rewrote)\b", ("what if ",)
        ),
        Phrase(rf"{_WE}try (?:something else|again|instead)\b", ("try ",)),
    ),
}


class Finder:
    """Says which behaviours a trace shows, each pattern compiled once."""

    def __init__(self, phrases: Mapping[str, Sequence[Phrase]] = PHRASES) -> None:
        self._phrases = {
            name: [(re.compile(phrase.pattern, re.MULTILINE), phrase.words) for phrase in own]
            for name, own in phrases.items()
        }

    def shown(self, text: str) -> dict[str, bool]:
        """Whether each behaviour's phrases are in `text`."""
        trace = _Trace(normal(text))
        return {name: any(trace.holds(pattern, words) for pattern, words in own) for name, own in self._phrases.items()}


class _Trace:
    """A normal text in which each word is searched once, whichever phrases hold it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._found: dict[str, list[int]] = {}

    def holds(self, pattern: re.Pattern[str], words: Sequence[str]) -> bool:
        """Whether the pattern, of which every match holds one of the words, matches anywhere."""
        return any(pattern.search(self._text, *span) for word in words for span in self._around(word))

    def _around(self, word: str) -> Iterator[Span]:
        """Spans of text in which every match lies that holds `word`; they end between words."""
        for first, last in _runs(self._places(word)):
            stop = self._text.find(" ", last + len(word) + REACH)
            yield max(0, first - REACH), stop if stop >= 0 else len(self._text)

    def _places(self, word: str) -> list[int]:
        if word not in self._found:
            self._found[word] = list(_places_of(word, self._text))
        return self._found[word]


def _places_of(word: str, text: str) -> Iterator[int]:
    place = text.find(word)  # several times as fast as `re` with a pattern of letters alone
    while place >= 0:
        yield place
        place = text.find(word, place + 1)


def _runs(places: Sequence[int]) -> Iterator[Span]:
    """First and last place of those that are so near each other that what is around them would overlap."""
    first = last = places[0] if places else 0
    for place in places:
        if place - last > 2 * REACH:
            yield first, last
            first = place
        last = place
    if places:
        yield first, last


def normal(text: str) -> str:
    r"""Lower case, straight apostrophes, one space between words; lines stay, since some patterns begin one.

    >>> normal("Let’s  CHECK\nthis")
    "let's check\nthis"
    """
    plain = text.lower().replace("\u2019", "'").replace("\t", " ")
    while "  " in plain:
        plain = plain.replace("  ", " ")
    return plain
