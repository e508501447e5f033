"""Phrases are found around their words as a search of the whole text finds them."""

from __future__ import annotations

import random
import re
from re import _parser  # type: ignore[attr-defined]  # nothing public says how long a match may be

import pytest
from hypothesis import given, settings, strategies as st

from exprl.evaluation.phrases import PHRASES, REACH, Finder, Phrase, normal

EVERY = [pytest.param(phrase, id=phrase.pattern[-40:]) for phrases in PHRASES.values() for phrase in phrases]
FINDER = Finder()


def by_whole_search(text: str) -> dict[str, bool]:
    plain = normal(text)
    return {
        name: any(re.search(phrase.pattern, plain, re.MULTILINE) for phrase in phrases)
        for name, phrases in PHRASES.items()
    }


@pytest.mark.parametrize("phrase", EVERY)
@settings(max_examples=15)
@given(data=st.data())
def test_every_match_holds_a_word_and_is_within_reach(phrase: Phrase, data: st.DataObject) -> None:
    pattern = re.compile(phrase.pattern, re.MULTILINE)
    assert _parser.parse(phrase.pattern, re.MULTILINE).getwidth()[1] <= REACH
    text = data.draw(st.from_regex(pattern))
    found = pattern.search(text)
    assert found is not None
    assert any(word in found[0] for word in phrase.words)


def words() -> list[str]:
    """What the patterns spell, and what makes up other texts."""
    spelled = {
        word for phrases in PHRASES.values() for phrase in phrases for word in re.findall("[a-z']+", phrase.pattern)
    }
    return [
        *sorted(spelled),
        *["let me", "i", "we", "that", "is", "another", "method", "\n", ":", "\t", "x = 3", "∑"] * 4,
    ]


@pytest.mark.parametrize("length", [8, 40, 400, 3000])
def test_verdicts_are_those_of_a_search_of_the_whole(length: int) -> None:
    choose, vocabulary, found = random.Random(length), words(), 0
    for _ in range(20_000 // length):
        text = "".join(
            choose.choice(vocabulary) + choose.choice((" ", " ", "  ", ", ", ". ", "\n", "")) for _ in range(length)
        )
        shown = FINDER.shown(text)
        assert shown == by_whole_search(text)
        found += sum(shown.values())
    assert found > 0


@pytest.mark.parametrize("gap", [0, REACH, 2 * REACH, 2 * REACH + 1, 5 * REACH])
def test_a_match_is_found_however_far_its_words_stand_apart(gap: int) -> None:
    text = f"She checks. {'x' * gap} Let me double-check it. {'y ' * gap}he checks"
    assert FINDER.shown(text) == {**dict.fromkeys(PHRASES, False), "verification": True}
    assert not any(FINDER.shown(text.replace("Let me double-check it", "Tom checks it")).values())


def test_a_pattern_ends_where_a_word_does() -> None:
    long = "another " + "z" * (REACH - 20)
    for end in range(60):
        text = f"{long}{'a' * end} so my answers"  # wherever the span around "another" ends, "answer" alone is none
        assert FINDER.shown(text) == by_whole_search(text)


def test_white_space_is_one_space_and_lines_stay() -> None:
    assert normal("A\t\tB \t  C\n\n  d\u2019s") == "a b c\n\n d's"
