"""Slicing by the judge's scores: the search against all divisions there are, segments by hand, and the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from exprl.config import validate
from exprl.errors import ConfigError
from exprl.registry import SLICERS
from exprl.slicers import ChangePointSlicer
from exprl.slicers.cuts import even_ends
from exprl.slicers.segmentation import at_least, cheapest, level_costs, line_costs, noise_of
from exprl.types import Rollout
from tests.rollouts import rollout_of

LIKERT = st.floats(1, 5).map(lambda score: round(score, 2))
CURVES = st.lists(LIKERT, min_size=2, max_size=8)


def words(count: int, finish: str = "stop") -> Rollout:
    """Tokens of a word each."""
    return rollout_of(*[" word"] * count, finish=finish)  # type: ignore[arg-type]


def cuts(scores: Sequence[float | None], **options: Any) -> list[int]:
    """Where segments end, of a rollout that has a word, and is asked about, for each score."""
    slicer = ChangePointSlicer(**{"every": 1, "max_tokens": None, "fit": "line", **options})
    return [segment.end for segment in slicer.slice_scored(words(len(scores)), scores)]


# ------------------------------------------------------------------ the search


def distances(tokens: Sequence[float], scores: Sequence[float], degree: int) -> float:
    """Sum of the points' squared distances from the best polynomial of a degree, by another way to find it."""
    if len(scores) <= degree + 1:
        return 0.0
    matrix = np.vander(np.array(tokens, dtype=float), degree + 1)
    fitted = matrix @ np.linalg.lstsq(matrix, np.array(scores), rcond=None)[0]
    return float(((fitted - scores) ** 2).sum())


def divisions(last: int, most: int) -> Iterator[tuple[int, ...]]:
    """All paths from 0 to `last` of at most `most` edges."""
    for inner in range(min(most, last)):
        for chosen in combinations(range(1, last), inner):
            yield (0, *chosen, last)


def dearness(path: Sequence[int], cost: Callable[[int, int], float], penalty: float) -> float:
    return sum(cost(*edge) + penalty for edge in pairwise(path))


@settings(max_examples=150)
@given(
    scores=CURVES, gaps=st.lists(st.integers(1, 5), min_size=8, max_size=8), penalty=st.floats(0.01, 3), data=st.data()
)
def test_no_division_at_all_is_cheaper(scores: list[float], gaps: list[int], penalty: float, data: Any) -> None:
    count, tokens = len(scores), np.cumsum(gaps)[: len(scores)]
    most, shortest = data.draw(st.none() | st.integers(1, count)), data.draw(st.integers(1, 6))
    degree = data.draw(st.sampled_from([0, 1]))
    places = np.array([0, *tokens[1:], tokens[-1]])
    made = line_costs(tokens.astype(float), np.array(scores)) if degree else level_costs(np.array(scores))

    def cost(start: int, end: int) -> float:
        return distances(tokens[start:end], scores[start:end], degree)

    def allowed(path: Sequence[int]) -> bool:
        lengths = [places[end] - places[start] for start, end in pairwise(path)]
        return len(path) == 2 or all(length == 0 or length >= shortest for length in lengths)

    found = cheapest(at_least(made, places, shortest), count, penalty, most)
    assert allowed(found)
    assert len(found) - 1 <= (most or count)
    best = min(dearness(path, cost, penalty) for path in divisions(count, most or count) if allowed(path))
    assert dearness(found, cost, penalty) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("deviation", [0.05, 0.5])
def test_noise_is_measured_beside_the_bends_of_a_curve(deviation: float) -> None:
    curve = np.interp(np.arange(400.0), [0, 150, 400], [1, 4, 4])
    noisy = curve + np.random.default_rng(0).normal(scale=deviation, size=400)
    assert noise_of(noisy, 2) == pytest.approx(deviation, rel=0.15)
    assert noise_of(curve, 2) == pytest.approx(0, abs=1e-12)
    stairs = np.repeat([1.0, 3.0, 2.0, 5.0], 100)
    assert noise_of(stairs + noisy - curve, 1) == pytest.approx(deviation, rel=0.15)
    assert noise_of(stairs, 1) == noise_of(np.array([1.0, 5.0]), 2) == 0.0


@pytest.mark.parametrize("fit", ["line", "level"])
def test_noise_is_hardly_ever_cut_and_bends_in_it_are_found(fit: str) -> None:
    """With the defaults: 100 curves of each kind of 32 points, noise of 0.2 Likert points."""
    grid, noise = np.arange(32.0), np.random.default_rng(1).normal(scale=0.2, size=(100, 32))
    plain = {"line": np.interp(grid, [0, 31], [1.5, 4.0]), "level": np.full(32, 2.0)}[fit]
    bent = {"line": np.interp(grid, [0, 15, 31], [1.5, 4.0, 4.0]), "level": np.where(grid < 15, 2.0, 3.0)}[fit]
    assert [cuts([*plain + own], fit=fit) for own in noise].count([32]) >= 90
    found = [cuts([*bent + own], fit=fit) for own in noise]
    assert sum(len(ends) == 2 and abs(ends[0] - 16) <= 3 for ends in found) >= 85


# ------------------------------------------------------------------ by hand


@pytest.mark.parametrize(
    ("scores", "ends"),
    [
        ([1, 2, 3, 4, 4, 4, 4, 4], [4, 8]),  # it stops rising with the fourth
        ([1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5], [8]),  # steady progress
        ([3] * 8, [8]),
        ([1, 1, 1, 1, 2, 3, 4, 5], [4, 8]),
        ([2, 3, 4, 3, 2, 1, 1, 1], [3, 6, 8]),  # up, down, flat
        ([1, 5], [2]),  # no point between the ends
    ],
)
def test_lines(scores: list[float], ends: list[int]) -> None:
    assert cuts(scores) == ends


@pytest.mark.parametrize(
    ("scores", "ends"),
    [
        # a segment ends with the first prefix on the next level: what led to it has the credit
        ([1, 1, 2, 2, 2, 3, 3, 3], [3, 6, 8]),
        ([1, 1, 1, 1, 1, 1, 1, 3], [8]),  # with the last: there is nothing behind it
        ([4, 4, 4, 4, 2, 2, 2, 2], [5, 8]),
        ([3] * 8, [8]),
    ],
)
def test_levels(scores: list[float], ends: list[int]) -> None:
    assert cuts(scores, fit="level") == ends


def test_whole_scores_of_a_judge_that_gives_no_expected_ones() -> None:
    assert cuts([1, 1, 1, 2, 2, 2, 2, 4, 4, 4], fit="level") == [4, 8, 10]
    assert cuts([1, 1, 1, 1, 1, 1, 3, 4, 5, 5, 5, 5]) == [7, 9, 12]


def test_failed_judgements_are_no_points_of_the_curve() -> None:
    whole = [1, 2, 3, 4, 4, 4, 4, 4]
    assert cuts([1, None, 3, 4, None, 4, 4, 4]) == cuts(whole)
    assert cuts([1, 2, 3, None, 4, 4, 4, 4]) == [5, 8], "nothing is cut where nothing is known"
    assert cuts([1, 2, 3, 4, 4, 4, 4, None]) == [4, 8], "the end is the end all the same"
    assert cuts([None] * 8) == cuts([None] * 7 + [3.0]) == [8]
    assert cuts([1, 1, 2, 2, 2, 3, 3, None], fit="level") == [3, 6, 8]


def test_limits() -> None:
    stairs = [1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4]
    assert cuts(stairs, fit="level") == [3, 6, 9, 12]
    for most in (1, 2, 3):
        assert len(cuts(stairs, fit="level", max_segments=most)) <= most
    assert cuts([1, 2, 3, 4, 4, 4, 4, 4], min_tokens=5) == [8]
    assert cuts([1, 2, 3, 4, 5, 5, 5, 5], min_tokens=4) == [4, 8]
    assert cuts([3] * 8, max_tokens=4) == [4, 8]
    assert cuts([1, 2, 3, 4, 4, 4, 4, 4, 4, 4], max_tokens=4) == [4, 7, 10], "bends are cut where they were"
    assert cuts([3] * 9, max_tokens=2) == [2, 4, 5, 7, 9], "evenly"
    assert cuts([3, *[None] * 6, 3], max_tokens=2) == [1, 8], "where something is known"
    assert cuts([3] * 16, max_tokens="auto") == [*range(2, 17, 2)], "an eighth"
    assert cuts([3] * 16, max_tokens="auto", min_tokens=4) == [8, 16]
    assert cuts([3] * 11, max_tokens=10, min_tokens=5) == [5, 11]
    assert cuts([3, 3, 3, *[None] * 4, 3, 3, 3, 3], max_tokens=10, min_tokens=5) == [11], "no place is 5 from both ends"
    assert cuts([3] * 16, max_tokens="auto", max_segments=4) == [4, 8, 12, 16]
    assert cuts([1, 2, 3, 4, 4, 4, 4, 4, 4, 4], max_tokens=2, max_segments=3) == [4, 7, 10]
    assert cuts(stairs, fit="level", penalty=1000.0) == cuts(stairs, fit="level", noise=4.0) == [12]


# ------------------------------------------------------------------ where the judge is asked


def test_it_asks_every_so_many_tokens_at_the_ends_of_words() -> None:
    slicer = ChangePointSlicer(every=3)
    assert slicer.prefix_ends(rollout_of("a", " b", " c", " d", " e", " f", " g")) == (3, 6, 7)
    assert slicer.prefix_ends(rollout_of("x", "=", " 1", "2", "3", " y", " z")) == (2, 6, 7), "no half number"
    assert slicer.prefix_ends(rollout_of(*"abcdefg")) == (3, 6, 7), "but somewhere"
    assert slicer.prefix_ends(rollout_of("a", " b", " c", "")) == (4,), "not twice about the same text"
    assert slicer.prefix_ends(rollout_of("a")) == (1,)
    assert slicer.prefix_ends(rollout_of()) == ()
    assert len(ChangePointSlicer().prefix_ends(words(640))) == len(ChangePointSlicer().prefix_ends(words(32))) == 32


@settings(max_examples=100)
@given(
    pieces=st.lists(st.sampled_from(["a", "bc", " ", "\n", "", " d", "7"]), max_size=40),
    every=st.integers(1, 9) | st.none(),
    data=st.data(),
)
def test_segments_cover_the_tokens_end_at_points_and_say_something(
    pieces: list[str], every: int | None, data: Any
) -> None:
    sample = rollout_of(*pieces)
    least = data.draw(st.integers(1, 6))
    slicer = ChangePointSlicer(
        every=every,
        fit=data.draw(st.sampled_from(["line", "level"])),
        min_tokens=least,
        max_segments=data.draw(st.none() | st.integers(1, 4)),
        noise=0.01,
        max_tokens=data.draw(st.sampled_from([None, "auto", 2 * least, 3 * least])),
    )
    ends = slicer.prefix_ends(sample)
    assert list(ends) == sorted({*ends})
    assert ends[-1:] == ((len(sample),) if len(sample) else ())
    scores = data.draw(st.lists(st.none() | LIKERT, min_size=len(ends), max_size=len(ends)))
    segments = slicer.slice_scored(sample, scores)
    assert segments == slicer.slice_scored(sample, scores)
    assert [token for s in segments for token in range(s.start, s.end)] == list(range(len(sample)))
    assert {segment.end for segment in segments} <= {*ends}
    assert len(segments) <= (slicer.max_segments or len(sample))
    if len(segments) > 1:
        assert all(len(segment) >= least for segment in segments)
        assert all(sample.text_of(segment.start, segment.end).strip() for segment in segments)
    divided = ChangePointSlicer(every=every, fit=slicer.fit, noise=0.01, max_tokens=3).slice_scored(sample, scores)
    assert [token for s in divided for token in range(s.start, s.end)] == list(range(len(sample)))
    assert {segment.end for segment in divided} <= {*ends}


def test_points_are_where_a_word_ends_if_one_does() -> None:
    assert even_ends(rollout_of("ab", "cd", "e f", "g"), 2) == (2, 4)
    assert even_ends(rollout_of("ab", "cd ", "ef", "gh", "i"), 3) == (2, 5)


# ------------------------------------------------------------------ options


def test_it_cannot_cut_without_scores() -> None:
    with pytest.raises(ConfigError, match=r"'change_point' cuts by a judge's scores: give it to ProcessReward, which"):
        ChangePointSlicer().slice(words(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, r"^every: must be in \[1, .*but got 0"),
        ({"fit": "curve"}, r"^fit: got 'curve'.*line"),
        ({"penalty": 0}, r"^penalty: must be in \[0\.001, .*but got 0"),
        ({"noise": 0}, r"^noise: must be in \[0\.001, 4\]"),
        ({"max_segments": 0}, r"^max_segments: must be in \[1"),
        ({"min_tokens": 4, "max_tokens": 7}, r"^max_tokens: must be at least twice min_tokens \(4\), but got 7"),
        ({"min_tokens": 0}, r"^min_tokens: must be in \[1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(SLICERS.get("change_point").Config, options)


def test_advice_says_what_is_set() -> None:
    assert "penalty, 2 now" in ChangePointSlicer().advice
    assert "reward.slicer.every (64 tokens now" in ChangePointSlicer(every=64).advice
