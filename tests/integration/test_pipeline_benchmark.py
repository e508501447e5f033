"""The real steps of `benchmarks/pipeline.py --validate`, a hundred times as fast, and what they count."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def real(monkeypatch) -> ModuleType:
    """`benchmarks/pipeline_real.py`, which finds its neighbours as a program does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("pipeline_real")


def test_steps_run_on_engine_judge_and_update_that_sleep(real):
    plan = real.plan(3, 0, scale=0.01)
    seconds = real.measured(plan, real.Case(way="in sequence", ranks=1, samplers=2))
    assert len(seconds) == 1  # without the first and the last; Marks has seen that each made its update
    assert seconds[0] > 0


def test_the_prompts_of_the_work_are_those_of_the_judge(real):
    work = real.plan(1, 0).work
    assert work.judge_instructions > work.judge_shared > 0
    assert 0 < work.judge_closing < work.segment_tokens


def test_a_cache_knows_whole_blocks_that_follow_the_same_ones(real):
    cache, ids = real.PrefixCache(), list(range(40))
    assert cache.missing(ids) == 40
    assert cache.missing(ids) == 8  # two blocks of 16 are known
    assert cache.missing([*ids[:16], 99, *ids[17:]]) == 24
    assert cache.missing([99, *ids[1:]]) == 40  # the second block follows another
