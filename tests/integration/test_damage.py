"""A run whose files were damaged, deleted or lost goes on honestly, or says in one line why it does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from exprl.commands.train import TrainingRun, train
from exprl.errors import CheckpointError, ExprlError, RunDirectoryError
from exprl.experiment import load_experiment
from exprl.rollouts.store import file_name
from exprl.runs.digests import digests, write_digests
from exprl.runs.directory import RunDirectory
from exprl.terminal.console import Console
from exprl.training.callbacks import Checkpoints
from exprl.training.tensorboard import EventFiles
from tests.integration.conftest import ROOT, SMALL
from tests.integration.processes import lines, samples
from tests.unit.test_run_files import no_room
from tests.unit.test_untrusted import Payload

OPTIONS = ["trainer.checkpoint_every=1", "trainer.keep_checkpoints=3", "trainer.print_samples=0", "evaluation.every=2"]


def trained(folder: Path, *overrides: str) -> dict[str, Any]:
    experiment = load_experiment(ROOT / "configs/quickstart.yaml", [*SMALL, *OPTIONS, *overrides])
    return train(experiment, folder, resume=True, console=Console(quiet=True))


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    checkpoint = RunDirectory(folder).checkpoint(step)
    found: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return found


def assert_same(one: Path, other: Path, step: int = 4) -> None:
    """The weights after `step`, and all that was written until then."""
    expected = weights(other, step)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(one, step).items())
    for read in (lambda folder: lines(folder / "metrics.jsonl"), samples):
        assert read(one) == [line for line in read(other) if line["step"] <= step]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that nothing happened to; tests must not change it."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    trained(folder)
    return folder


@pytest.fixture
def run(straight: Path, tmp_path: Path) -> RunDirectory:
    """Its copy, as a run that was killed when only its summary was missing."""
    copy = RunDirectory(shutil.copytree(straight, tmp_path / "run"))
    copy.summary.unlink()
    return copy


def flip(file: Path, place: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * place)] ^= 0xFF
    file.write_bytes(bytes(content))


# ------------------------------------------------------------------ checkpoints


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut_off, emptied])
def test_a_damaged_checkpoint_is_passed_over(
    straight: Path, run: RunDirectory, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(run.checkpoint(4))
    assert trained(run.path)["steps"] == 4
    assert "step-000004.ckpt is damaged" in caplog.text
    assert_same(run.path, straight)
    assert (run.checkpoints / "step-000004.ckpt.damaged").exists()


def test_nothing_is_cut_before_a_checkpoint_was_read(run: RunDirectory) -> None:
    before = {path: path.read_bytes() for path in (run.metrics, *run.rollouts.iterdir())}
    for place, checkpoint in zip((0.1, 0.5, 0.9), run.all_checkpoints(), strict=True):
        flip(checkpoint, place)
    with pytest.raises(CheckpointError, match="no checkpoint of the run is whole"):
        trained(run.path)
    assert {path: path.read_bytes() for path in before} == before


def test_one_that_is_whole_but_no_checkpoint_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    before = run.metrics.read_bytes()
    torch.save({"state_dict": {}, "more": Payload(tmp_path / "executed")}, run.checkpoint(4))
    write_digests(run.checkpoint(4), digests(run.checkpoint(4)))
    with pytest.raises(CheckpointError, match=r"step-000004\.ckpt cannot be read as a checkpoint of this run"):
        trained(run.path)
    assert not (tmp_path / "executed").exists()
    assert run.metrics.read_bytes() == before


def test_one_from_before_there_were_digests_is_read_with_a_warning(
    straight: Path, run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    for checkpoint in run.checkpoints.glob("*.sha256"):
        checkpoint.unlink()
    assert trained(run.path)["steps"] == 4
    assert "has no digests" in caplog.text
    assert_same(run.path, straight)


# ------------------------------------------------------------------ what is still to do


@pytest.mark.parametrize("step", [2, 4])
def test_the_evaluation_of_a_step_is_made_up_for(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder, evaluated = tmp_path / "run", TrainingRun.evaluated

    def failing(self: TrainingRun, name: str, module: Any) -> Any:
        if name == f"step-{step:06d}":
            raise RuntimeError("the machine is gone")
        return evaluated(self, name, module)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingRun, "evaluated", failing)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            trained(folder)
    assert RunDirectory(folder).latest_checkpoint() == RunDirectory(folder).checkpoint(step)
    trained(folder)
    for name in ("before", "step-000002", "step-000004", "after"):
        made, expected = (RunDirectory(place).evaluation(name).read_text() for place in (folder, straight))
        assert json.loads(made) == json.loads(expected), name
    assert_same(folder, straight)


def test_a_finished_run_without_its_summary_trains_on(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trained(folder, "trainer.max_steps=3")
    RunDirectory(folder).summary.unlink()
    assert trained(folder)["steps"] == 4
    made, expected = (json.loads(RunDirectory(place).evaluation("after").read_text()) for place in (folder, straight))
    assert made == expected, "the last evaluation is that of the last step"
    metrics = folder / "metrics.jsonl"
    written = metrics.read_text().splitlines(keepends=True)
    assert [json.loads(line)["step"] for line in written if "evaluation/" in line] == [0, 2, 3, 4]
    metrics.write_text("".join(line for line in written if not ('"step": 3' in line and "evaluation/" in line)))
    assert_same(folder, straight)


def test_a_checkpoint_of_the_end_of_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions saved the last step when training had ended, and Lightning then takes all to be done."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "on_train_batch_end", lambda *_: None)
        patched.setattr(Checkpoints, "on_train_end", Checkpoints.save)
        trained(folder, "trainer.max_steps=2", "evaluation.source=null")
    RunDirectory(folder).summary.unlink()
    trained(folder, "evaluation.source=null")
    trained(tmp_path / "whole", "evaluation.source=null")
    assert steps_of(folder) == steps_of(tmp_path / "whole")


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The metrics of each step that do not depend on the clock."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


# ------------------------------------------------------------------ a full disk


def test_tensorboard_without_room_is_left_out(tmp_path: Path, caplog: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with no_room():
        logger = EventFiles(tmp_path, name="tensorboard")
        for step in range(20):
            logger.log_metrics({"reward/mean": 1.0}, step)
            time.sleep(0.02)  # its writer is a thread, which fails at one of them
        logger.save()
        logger.finalize("success")
    assert caplog.text.count("TensorBoard's files cannot be written (File too large)") == 1
    assert "Traceback" not in capfd.readouterr().err


def test_tensorboard_without_room_for_its_folder_is_left_out(tmp_path: Path, caplog: Any) -> None:
    """Lightning asks for the writer before the first step, outside of all that would name the run."""
    (tmp_path / "tensorboard").write_text("in the way")
    logger = EventFiles(tmp_path, name="tensorboard")
    logger.experiment.add_scalar("reward/mean", 1.0, 1)
    logger.log_metrics({"reward/mean": 1.0}, 1)
    logger.finalize("success")
    assert caplog.text.count("TensorBoard's files cannot be written") == 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, leave: int) -> None:
    with (disk / "ballast").open("wb") as file:
        file.write(b"0" * (shutil.disk_usage(disk).free - leave))


def test_a_disk_that_is_full_from_the_start(straight: Path, disk: Path) -> None:
    fill(disk, 0)
    with pytest.raises(RunDirectoryError, match=r"run_dir .*cannot be written \(.*No space left"):
        trained(disk / "run")
    (disk / "ballast").unlink()
    trained(disk / "run", "trainer.keep_checkpoints=1")
    assert_same(disk / "run", straight)


@pytest.mark.parametrize("leave", [20_000, 1_000_000, 12_000_000])
def test_a_disk_that_is_full_later(straight: Path, disk: Path, leave: int) -> None:
    """Room for the config, for evaluations and a few steps, for one checkpoint."""
    fill(disk, leave)
    with pytest.raises(ExprlError, match="No space left"):
        trained(disk / "run", "trainer.keep_checkpoints=1")
    (disk / "ballast").unlink()
    trained(disk / "run", "trainer.keep_checkpoints=1")
    assert_same(disk / "run", straight)


# ------------------------------------------------------------------ the other files


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"steps": "four"}', b'{"steps": 4}'])
def test_a_damaged_summary_is_made_again(straight: Path, run: RunDirectory, content: bytes, caplog: Any) -> None:
    run.summary.write_bytes(content)
    again, first = trained(run.path), json.loads((straight / "summary.json").read_text())
    assert "summary.json" in caplog.text
    for key in ("before", "after", "difference", "steps"):
        assert again[key] == first[key]


def test_damaged_evaluations(straight: Path, run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    run.evaluation("after").write_text('{"summary": {}}')
    run.evaluation("before").write_text('{"summ')
    summary = trained(run.path)
    assert "before.json is damaged" in caplog.text
    assert "the evaluation before training is lost" in caplog.text
    assert summary["before"] is None
    assert summary["after"] == json.loads((straight / "summary.json").read_text())["after"]
    assert run.evaluation("before").read_text() == '{"summ', "left as it is"


def test_a_finished_run_with_damaged_evaluations_is_shown_all_the_same(run: RunDirectory, caplog: Any) -> None:
    trained(run.path)
    run.evaluation("before").write_bytes(b"\xff")
    assert trained(run.path)["steps"] == 4
    assert "before.json cannot be read" in caplog.text


def test_lost_lines_are_counted(run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    (run.rollouts / file_name(2)).unlink()
    run.metrics.unlink()
    trained(run.path)
    assert "has the rollouts of 3 steps up to step 4, but should have those of 4; the rest is lost" in caplog.text
    assert "metrics.jsonl has 0 readable lines up to step 4, but should have 4" in caplog.text


def test_a_damaged_line_is_kept_aside(run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray(run.metrics.read_bytes())
    content[300] = 0xFF
    run.metrics.write_bytes(bytes(content))
    trained(run.path)
    assert "the file as it was is kept as metrics.jsonl.damaged" in caplog.text
    assert (run.path / "metrics.jsonl.damaged").read_bytes() == bytes(content)
    assert lines(run.metrics)


def test_a_run_that_is_going_is_not_started_again(run: RunDirectory) -> None:
    with run.used(), pytest.raises(RunDirectoryError, match=r"run_dir .* is in use by process \d+ on "):
        trained(run.path)
    assert not run.summary.exists()
