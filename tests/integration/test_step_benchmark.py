"""The benchmark of whole steps, with a toy in place of its model."""

from __future__ import annotations

import importlib
import importlib.util
import mmap
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def step(monkeypatch) -> ModuleType:
    """`benchmarks/step.py`, which finds its neighbours as a program does."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("step")


@pytest.mark.parametrize("kl", [True, False])
def test_steps_of_exprl_are_timed_and_all_rollouts_have_the_length_that_was_asked_for(step, tmp_path, kl):
    options = step.parse(["--small", "--repeats=2", "--model", str(tmp_path), *([] if kl else ["--no-kl"])])
    step.save_model(tmp_path, options)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = step.exprl(options)  # asserts lengths and updates at every step
    assert not [one for one in warned if "no logger configured" in str(one.message)]
    assert len(found["seconds"]) == len(found["cpu_seconds"]) == 2
    assert min(found["seconds"]) > 0
    assert found["peak_gib"] >= 0  # 0 where what earlier tests freed was enough


def test_the_peak_of_memory_is_what_came_on_top_also_when_it_is_free_again(step):
    memory = step.Memory("cpu")
    with mmap.mmap(-1, 2**28) as block:  # of its own: what is allocated may be what earlier tests freed
        block[:: mmap.PAGESIZE] = b"1" * (2**28 // mmap.PAGESIZE)
    assert 0.2 < memory.peak_gib() < 0.5


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_steps_of_trl_are_timed_with_the_same_prompts_and_lengths(step, tmp_path):
    options = step.parse(["--small", "--model", str(tmp_path)])
    step.save_model(tmp_path, options)
    assert len(step.trl(options)["seconds"]) == 1


def test_the_table_gives_the_ratio_and_names_what_failed(step):
    options = step.parse(["--small"])
    own = {"seconds": [1.0, 2.0, 3.0], "cpu_seconds": [4.0], "peak_gib": 1.0}
    other = {"seconds": [4.0], "cpu_seconds": [6.0], "peak_gib": 4.0}
    lines = step.table([("exprl", own), ("trl", other)], options)
    assert lines[-1] == "exprl / TRL: tokens/s 2.00, by CPU seconds 1.50, peak memory 0.25."
    assert "| exprl | 3 | 2.00 (1.00 to 3.00) | 4.00 | 16.0 | 8.0 | 1.00 |" in lines
    lines = step.table([("exprl", own), ("trl", {"failed": "no result within 5 s"})], options)
    assert lines[-1] == "| TRL | no result within 5 s | | | | | |"


def test_steps_of_exprl_that_failed_are_seen_in_the_exit_status_and_those_of_a_peer_in_the_table(
    step, monkeypatch, capsys
):
    monkeypatch.setattr(step, "save_model", lambda *_: None)
    good = {"seconds": [1.0], "cpu_seconds": [1.0], "peak_gib": 1.0}
    for failing, status in (("exprl", 1), ("trl", 0)):
        monkeypatch.setattr(step, "in_its_own", lambda name, *_, f=failing: {"failed": "why"} if name == f else good)
        assert step.main(["--small"]) == status
        assert "| why |" in capsys.readouterr().out


def test_random_weights_of_a_shape_have_a_tokenizer_of_their_vocabulary(step, monkeypatch):
    shape = step.SHAPES["tiny"].shape
    monkeypatch.setitem(step.SHAPES, "qwen3-tiny", step.SHAPES["tiny"])
    model = step.toy("qwen3-tiny")
    assert len(model.tokenizer) == model.model.config.vocab_size == shape["vocab_size"]
