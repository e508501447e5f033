"""What checkpoints take, and a disk without room for them."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from exprl.experiment import TrainerConfig
from exprl.runs.directory import RunDirectory
from exprl.training.room import checkpoint_bytes, most_at_once, size_of, warn_without_room

Usage = namedtuple("Usage", "total used free")


def model() -> torch.nn.Module:
    """1000 weights that train, float32, and 500 frozen ones, bfloat16."""
    frozen = torch.nn.Parameter(torch.zeros(500, dtype=torch.bfloat16), requires_grad=False)
    return torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(1000)), frozen])


def test_weights_and_two_moments_of_those_that_train() -> None:
    assert checkpoint_bytes(model()) == 3 * 4 * 1000 + 2 * 500


@pytest.mark.parametrize(
    ("steps", "every", "keep", "most"),
    [(100, 10, 2, 3), (100, 0, 2, 1), (15, 10, 2, 2), (20, 10, 1, 2), (9, 10, 5, 1), (30, 10, 5, 3)],
)
def test_how_many_lie_there_at_once(steps: int, every: int, keep: int, most: int) -> None:
    options = TrainerConfig(max_steps=steps, checkpoint_every=every, keep_checkpoints=keep)
    assert most_at_once(options) == most


def test_a_disk_without_room_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory, options = RunDirectory(tmp_path), TrainerConfig()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 0, 39_000))
    warn_without_room(directory, model(), options)
    assert caplog.text == "", "3 of 13,000 bytes fit"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 0, 38_999))
    warn_without_room(directory, model(), options)
    assert "has room for 39.0 kB, but checkpoints need about 39.0 kB: each 13.0 kB, and up to 3 at once" in caplog.text
    caplog.clear()
    directory.checkpoints.mkdir()
    directory.checkpoint(10).write_bytes(b"one of them")
    warn_without_room(directory, model(), options)
    assert caplog.text == "", "one of the three is there"


def test_the_size_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder/inner").mkdir(parents=True)
    for name in ("file", "folder/a", "folder/inner/b"):
        (tmp_path / name).write_bytes(b"0" * 1500)
    assert (size_of(tmp_path / "file"), size_of(tmp_path / "folder")) == ("1.5 kB", "3.0 kB")
