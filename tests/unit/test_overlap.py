"""Held-out problems that are trained on are told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from exprl.data.overlap import overlap_warning
from exprl.types import Problem, Question
from tests.rollouts import problem_of


def asking(problem_id: str, text: str) -> Problem:
    return replace(problem_of(problem_id), question=Question(problem_id=problem_id, text=text))


TRAINING = [asking("t1", "What is 2 + 3?"), asking("t2", "Why?")]


def test_the_number_and_the_first_are_named() -> None:
    held_out = [asking("h0", "How?"), asking("h1", "  what is\n2 + 3? "), asking("h2", "why?")]
    said = overlap_warning(TRAINING, held_out)
    assert said is not None
    assert "2 of 3 held-out problems are training problems too (first: 'h1', in data.train 't1')" in said


@pytest.mark.parametrize("text", ["What is 2 + 4?", "What is 23?", "Why not?"])
def test_others_are_not(text: str) -> None:
    assert overlap_warning(TRAINING, [asking("t1", text)]) is None
    assert overlap_warning(TRAINING, []) is None
