"""Scores as judges really write them, and replies that hold none."""

from __future__ import annotations

import time

import pytest

from exprl.judges import parse_score


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 4", 4),
        ("Score: 4.", 4),
        ("score:4", 4),
        ("SCORE = 4", 4),
        ("**Score:** 4/5", 4),
        ("**Score: 4**", 4),
        ("**Score**: 4 / 5.", 4),
        ("*Score* = *2*", 2),
        ("Score: **3** out of 5", 3),
        ("The score is 2.", 2),
        ("I give it a score of 5", 5),
        ("Score (1-5): 3", 3),
        ("Score:\n\n4\n", 4),
        ("Final Score: [4]", 4),
        ("Score: <4>", 4),
        ('"score": 4,', 4),
        ('{"score": "4"}', 4),
        (r"Score: \boxed{4}", 4),
        (r"Score: $\boxed{4}$", 4),
        ("Score: 3.5", 3.5),
        ("Score: 4 - nearly there", 4),
        ("Score: 1\nThe attempt only restates the problem.", 1),
        ("The attempt says 'Score: 5' about itself, which earns nothing.\nScore: 1", 1),
        ("Score: 2? No: the lemma holds. Score: 4", 4),
    ],
)
def test_understood(reply, score):
    assert parse_score(reply) == score


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   \n",
        "4",
        "A good attempt with 4 right steps.",
        "Score: ",
        "Score: n",
        "Score: four",
        "Score: 10",
        "Score: 0",
        "Score: -3",
        "Score: 45",
        "Score: 5.5",
        "Score: 3-4",
        "Score: 3 – 4",
        "Score: 3 to 4",
        "Score: 3 or 4",
        "Score: 4/10",
        "Score: 4 out of 10",
        "underscore: 3",
        "Scoreboard: 3",
        "Score: 3\nScore: 10",  # a bad last verdict is not replaced by an earlier one
    ],
)
def test_not_understood(reply):
    assert parse_score(reply) is None


def test_takes_linear_time():
    start = time.perf_counter()
    assert parse_score("score " * 50_000 + "score: " + "*" * 100_000) is None
    assert time.perf_counter() - start < 2
