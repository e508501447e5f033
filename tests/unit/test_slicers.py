"""Slicers: worked by hand, and the contract on random rollouts."""

import random
import subprocess
import sys

import pytest

from exprl.config import validate
from exprl.errors import ConfigError
from exprl.registry import SLICERS
from exprl.slicers import DelimiterSlicer, TokenWindowSlicer
from tests.rollouts import rollout_of


def texts(slicer, *tokens: str) -> list[str]:
    """The text of each segment, `|` between its tokens."""
    return ["|".join(tokens[s.start : s.end]) for s in slicer.slice(rollout_of(*tokens))]


def delimiter(**options) -> DelimiterSlicer:
    return DelimiterSlicer(**options)


def window(**options) -> TokenWindowSlicer:
    return TokenWindowSlicer(**options)


# ------------------------------------------------------------------ delimiter


@pytest.mark.parametrize(
    ("tokens", "segments"),
    [
        (("###", " a", "###", " b"), ["###| a", "###| b"]),
        (("intro", "###", "a"), ["intro", "###|a"]),
        # spread over tokens: the one with its first character begins the segment
        (("a", "#", "#", "#", "b"), ["a", "#|#|#|b"]),
        # inside a token: that token begins the segment, whole
        (("a", ".\n\n###", " b"), ["a", ".\n\n###| b"]),
        (("a", "b###", "###", "c"), ["a", "b###", "###|c"]),
        # overlapping: found from the left, the fourth # belongs to the segment
        (("a", "####", "b"), ["a", "####|b"]),
        # white space before the first one, and bare delimiters, join what follows
        (("\n\n", "###", "a"), ["\n\n|###|a"]),
        (("###", "###", "\n", "###", "a", "###", "b"), ["###|###|\n|###|a", "###|b"]),
        # trailing delimiter, white space and end of sequence join the last segment
        (("a", "###", "b", "###", "\n", ""), ["a", "###|b|###|\n|"]),
        (("###", "a", ""), ["###|a|"]),
        # nothing to find, nothing but blanks, nothing at all
        (("a", "b", ""), ["a|b|"]),
        (("\n", "###", "\n", ""), ["\n|###|\n|"]),
        (("",), [""]),
        ((), []),
    ],
)
def test_delimiter_opens_a_segment(tokens, segments):
    assert texts(delimiter(), *tokens) == segments


@pytest.mark.parametrize(
    ("tokens", "segments"),
    [
        (("a", "###", "b", "###", ""), ["a|###", "b|###|"]),
        (("a", "#", "#", "#", "b"), ["a|#|#|#", "b"]),
        (("a", "###\n", "b"), ["a|###\n", "b"]),
        (("###", "a", "###"), ["###|a|###"]),
        (("a", "b"), ["a|b"]),
    ],
)
def test_delimiter_closes_a_segment(tokens, segments):
    assert texts(delimiter(position="end"), *tokens) == segments


def test_a_token_within_a_character_goes_with_the_character():
    # é spread over two tokens right after the delimiter: the first has no width and begins the segment.
    assert texts(delimiter(delimiter="\n", position="end"), "a", "\n", "", "é") == ["a|\n", "|é"]


def test_newline_as_delimiter():
    assert texts(delimiter(delimiter="\n", position="end"), "a=", "1", "\n", "b=", "2", "") == ["a=|1|\n", "b=|2|"]


@pytest.mark.parametrize(
    ("most", "segments"),
    [
        (1, ["#a|#b|#c|#d|#e"]),
        (2, ["#a|#b", "#c|#d|#e"]),
        (3, ["#a", "#b|#c", "#d|#e"]),
        (5, ["#a", "#b", "#c", "#d", "#e"]),
        (9, ["#a", "#b", "#c", "#d", "#e"]),
    ],
)
def test_max_segments_merges_neighbours_evenly(most, segments):
    assert texts(delimiter(delimiter="#", max_segments=most), "#a", "#b", "#c", "#d", "#e") == segments


# ------------------------------------------------------------------ token window


@pytest.mark.parametrize(
    ("options", "tokens", "segments"),
    [
        ({"window": 2}, "abcd", ["a|b", "c|d"]),
        ({"window": 2}, "abcde", ["a|b", "c|d", "e"]),
        ({"window": 3, "min_last": 2}, "abcd", ["a|b|c|d"]),
        ({"window": 3, "min_last": 2}, "abcde", ["a|b|c", "d|e"]),
        ({"window": 3, "min_last": 3}, "abcdef", ["a|b|c", "d|e|f"]),
        ({"window": 8}, "abc", ["a|b|c"]),
        ({"window": 8, "min_last": 8}, "abc", ["a|b|c"]),
        ({"window": 2}, ["a", "b", ""], ["a|b|"]),
        ({"window": 2}, ["a", "b", " ", "\n", "c"], ["a|b", " |\n|c"]),
        ({"window": 2}, "", []),
    ],
)
def test_token_window(options, tokens, segments):
    assert texts(window(**options), *tokens) == segments


def test_the_default_window_is_512_tokens():
    assert [len(s) for s in TokenWindowSlicer().slice(rollout_of(*["x"] * 1100))] == [512, 512, 76]


# ------------------------------------------------------------------ both


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize(
    "slicer",
    [
        delimiter(),
        delimiter(position="end"),
        delimiter(delimiter="#", max_segments=3),
        delimiter(delimiter="\n\n"),
        window(window=3),
        window(window=4, min_last=3),
    ],
    ids=repr,
)
def test_segments_cover_the_tokens_exactly_and_say_something(slicer, seed):
    rng = random.Random(seed)
    pieces = ["#", "##", "###", "\n", "\n\n", " ", "", "a", "b#", "#c", "é###"]
    sample = rollout_of(*rng.choices(pieces, k=rng.randrange(0, 40)))
    segments = slicer.slice(sample)
    assert [t for s in segments for t in range(s.start, s.end)] == list(range(len(sample)))
    if sample.text.replace("#", "").strip():
        mark = getattr(slicer.config, "delimiter", "")
        blank = [s for s in segments if not sample.text_of(s.start, s.end).replace(mark or "\0", "").strip()]
        assert not blank


@pytest.mark.parametrize(
    ("slicer", "options", "message"),
    [
        (DelimiterSlicer, {"delimiter": ""}, r"^delimiter: must be text that is not empty"),
        (DelimiterSlicer, {"max_segments": 0}, r"^max_segments: must be in \[1, .*but got 0"),
        (DelimiterSlicer, {"position": "begin"}, "position"),
        (TokenWindowSlicer, {"window": 0}, r"^window: must be in \[1, .*but got 0"),
        (TokenWindowSlicer, {"window": 4, "min_last": 5}, r"^min_last: must be at most window \(4\), but got 5"),
    ],
)
def test_wrong_options_are_named(slicer, options, message):
    with pytest.raises(ConfigError, match=message):
        validate(slicer.Config, options)


def test_registered_and_light():
    assert SLICERS.names() == ["change_point", "delimiter", "token_window"]
    code = "import sys, exprl.slicers; print(sorted({'torch', 'lightning', 'vllm', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
