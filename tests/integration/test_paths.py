"""Paths as a user writes them on the command line, and two commands at one place."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from exprl.commands.mine import mine
from exprl.config import parse_overrides
from exprl.errors import PathError, RunDirectoryError
from exprl.evaluation.rates import Rates
from exprl.files.lock import locked
from exprl.runs.digests import digests, write_digests
from exprl.runs.parts import INDEX, REST
from exprl.terminal.console import Console
from tests.integration.processes import execute
from tests.integration.test_cli import QUICKSTART, failing
from tests.unit.test_untrusted import Payload


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("r/exp #1", "r/exp #1"),
        ("#1", "#1"),
        ("a#b", "a#b"),
        ("'a #1'", "a #1"),
        ("[a, '#b']", ["a", "#b"]),
        ("3 #1", "3 #1"),
        ("r/lr=1e-5 # x", "r/lr=1e-5 # x"),
    ],
)
def test_an_override_has_no_comments(text: str, value: Any) -> None:
    assert parse_overrides([f"run_dir={text}"]) == {"run_dir": value}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://bucket/run", "run_dir: s3://bucket/run is a URL"),
        ("/dev/null", "run_dir /dev/null: cannot be written"),
        ("/dev/null/run", "run_dir /dev/null/run: cannot be written"),
        ("x" * 300, "run_dir: a name of 300 bytes"),
    ],
)
def test_what_cannot_be_a_runs_folder_is_one_line(
    place: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in failing(capsys, "train", QUICKSTART, f"run_dir={place}")
    assert not list(tmp_path.iterdir())


def test_a_run_with_an_equals_sign_in_its_name_is_a_run(
    small: Any,
    run: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from exprl.cli import main

    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    from exprl.commands.train import train

    train(small("trainer.max_steps=1"), "~/r/lr=1e-5 #1", resume=False, console=Console(quiet=True))
    place = home / "r/lr=1e-5 #1"
    left = {path.name for path in place.iterdir()}
    assert {"checkpoints", "config.yaml", "metrics.jsonl", "summary.json", "tensorboard"} <= left
    assert ".lock" not in left
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == []
    monkeypatch.chdir(place.parent)
    (place.parent / "link").symlink_to(place.name)
    for named in (place.name, "../r/link", "~/r/link"):
        main(["evaluate", named, "--output", "~/figures.json"])
        assert (home / "figures.json").exists()
        (home / "figures.json").unlink()
    assert "No config file" in failing(capsys, "evaluate", "no/such=run/x.yaml", "seed")


def test_an_output_that_cannot_be_written_is_found_before_sampling(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Any
) -> None:
    monkeypatch.setattr("exprl.commands.evaluate.Build", lambda *_: pytest.fail("built"))
    (tmp_path / "file").write_text("")
    for output in ("/dev/null", str(tmp_path), str(tmp_path / "file/x.json"), "s3://b/x.json"):
        assert "--output" in failing(capsys, "evaluate", QUICKSTART, "--output", output)
    with pytest.raises(PathError, match="--output"):
        mine(small(), tmp_path / "file/x.jsonl", Rates(), console=Console(quiet=True))


def test_one_process_mines_into_a_file(small: Any, tmp_path: Path) -> None:
    message = rf"hard\.jsonl is in use by process {os.getpid()} on"
    with locked(tmp_path / ".hard.jsonl.lock", "it"), pytest.raises(RunDirectoryError, match=message):
        mine(small(), tmp_path / "hard.jsonl", Rates(), console=Console(quiet=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("forking")
def test_a_sharded_run_does_not_go_on_from_an_index_that_runs_code(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("trainer.strategy=fsdp2", "trainer.devices=1", "trainer.accelerator=cpu", "trainer.keep_checkpoints=1")
    done = execute(folder, *options, "trainer.max_steps=1")
    assert done.returncode == 0, done.stderr[-2000:]
    checkpoint = folder / "checkpoints/step-000001.ckpt"
    (folder / "summary.json").unlink()
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    for name in (INDEX, REST):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        payload = Payload(tmp_path / "executed")
        if name == INDEX:
            (checkpoint / name).write_bytes(pickle.dumps(payload))
        else:
            torch.save({"exprl": payload}, checkpoint / name)
        write_digests(checkpoint, digests(checkpoint))
        resumed = execute(folder, *options, "trainer.max_steps=2")
        assert resumed.returncode == 2, resumed.stderr[-2000:]
        assert "cannot be read as a checkpoint of this run" in resumed.stderr
        assert "Traceback" not in resumed.stderr
        assert not (tmp_path / "executed").exists()
    shutil.rmtree(folder)
    shutil.copytree(whole, folder)
    resumed = execute(folder, *options, "trainer.max_steps=2")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "resuming after step 1" in resumed.stdout
