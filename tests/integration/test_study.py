"""`exprl study` on a miniature study, through the real command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from exprl.chain.model import ChainModel
from tests.integration.conftest import ROOT
from tests.integration.processes import samples
from tests.waiting import LONG, until

pytestmark = pytest.mark.usefixtures("forking")

SMALL_STUDY: dict[str, Any] = {
    "experiment": str(ROOT / "configs/quickstart.yaml"),
    "seeds": [0, 1],
    "baseline": "sparse",
    "overrides": {
        "model": {"max_steps": 2, "target_accuracy": 0.3},
        "data": {"train": {"count": 16, "steps": 2}, "prompts_per_step": 4},
        "rollout": {"samples_per_prompt": 4, "max_new_tokens": 24, "batch_size": 16},
        "evaluation": {"source": {"count": 4, "steps": 2}, "samples_per_prompt": 4, "k": [1, 4]},
        "trainer": {"max_steps": 2, "checkpoint_every": 1},
    },
    "stages": {
        "process": {},
        "sparse": {"reward": {"name": "sparse"}, "advantage": {"name": "group"}},
    },
    "arms": {"sparse": ["sparse", "sparse"], "process": ["process", "sparse"]},
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL_STUDY, "study_dir": str(folder / "study"), **changes}))
    return path


def start(path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "exprl", "study", str(path), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def study(path: Path, *arguments: str, code: int = 0) -> str:
    process = start(path, *arguments)
    output, _ = process.communicate(timeout=LONG)
    assert process.returncode == code, output
    return output


def processes_of(folder: Path) -> list[int]:
    """Every living process that was told of `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder) in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def await_end(folder: Path) -> None:
    until(lambda: not processes_of(folder))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study that nothing disturbed, and what it printed."""
    folder = tmp_path_factory.mktemp("straight")
    return folder / "study", study(write(folder))


def test_the_table_and_everything_beside_it(straight: tuple[Path, str]) -> None:
    folder, output = straight
    found = json.loads((folder / "study.json").read_text())
    assert [entry["stage"] for entry in found["arms"]["process"]] == ["process", "sparse"]
    for entry in (*found["arms"]["process"], *found["arms"]["sparse"]):
        assert [run["seed"] for run in entry["runs"]] == [0, 1]
        counts = [json.loads((folder / run["counts"]).read_text()) for run in entry["runs"]]
        by_hand = sum(sum(c["correct"]) for c in counts) / sum(c["samples"] * len(c["correct"]) for c in counts)
        assert entry["measures"]["pass@1"]["mean"] == pytest.approx(by_hand)
    assert set(found["differences"]["2"]) == {"pass@1", "pass@4", "progress"}
    assert set(found["differences"]["2"]["pass@1"]["process"]) == {"sparse"}
    assert "process/seed-1/2-sparse: pass@1" in output
    assert "After stage 2" in output
    assert "| process | sparse | 2 |" in (folder / "study.md").read_text()
    for name in ("pass_at_k-stage-1", "pass_at_k-stage-2", "curves-stage-1", "curves-stage-2"):
        assert (folder / f"plots/{name}.png").stat().st_size > 5000


def test_figures_and_curves_are_in_tensorboard(straight: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(straight[0] / "tensorboard/process"))
    events.Reload()
    assert [event.step for event in events.Scalars("stage-1/reward/mean")] == [1, 2]
    assert [event.step for event in events.Scalars("stage-2/pass@k over k")] == [1, 2, 4]
    images = EventAccumulator(str(straight[0] / "tensorboard/figures"))
    images.Reload()
    assert "curves-stage-2" in images.Tags()["images"]


def test_the_second_stage_starts_from_the_first_without_references(straight: tuple[Path, str]) -> None:
    folder, _ = straight
    config = yaml.safe_load((folder / "process/seed-1/2-sparse/config.yaml").read_text())
    assert config["model"]["path"] == str(folder / "process/seed-1/1-process")
    assert "judge" not in (folder / "process/seed-1/2-sparse/config.yaml").read_text()
    first = json.loads((folder / "process/seed-1/1-process/evaluation/after.json").read_text())
    second = json.loads((folder / "process/seed-1/2-sparse/evaluation/before.json").read_text())
    assert first["correct"] == second["correct"]


@pytest.mark.usefixtures("genuine")
def test_arms_get_mined_problems_alone(tmp_path: Path) -> None:
    path = write(tmp_path, mine={"samples": 4, "max_rate": 0.5}, seeds=[0], arms={"sparse": ["sparse"]})
    output = study(path)
    folder = tmp_path / "study"
    sets = [[json.loads(line) for line in p.read_text().splitlines()] for p in folder.glob("mined/*/problems.jsonl")]
    train, test = sorted(sets, key=len, reverse=True)
    assert all(row["correct"] <= 2 and row["samples"] == 4 for row in (*train, *test))
    found = samples(folder / "sparse/seed-0/1-sparse")
    assert {sample["problem_id"] for sample in found} <= {row["id"] for row in train}
    after = json.loads((folder / "sparse/seed-0/1-sparse/evaluation/after.json").read_text())
    assert after["problem_ids"] == [row["id"] for row in test]
    assert f"{len(train)} of 16 problems kept" in output


def test_nothing_mined_is_said_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, mine={"samples": 2, "min_rate": 1.0, "max_rate": 1.0}, seeds=[0])
    output = study(path, "overrides.model.target_accuracy=0.0", code=2)
    assert "0 of 16 problems have a solve rate from 1.0 to 1.0 in 2 samples" in output
    assert not (tmp_path / "study/sparse").exists()


def test_started_again_it_runs_nothing(straight: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = straight
    before = (folder / "study.json").read_bytes()
    logs = {path: path.stat().st_mtime_ns for path in folder.rglob("log.txt")}
    study(folder.parent / "small.yaml")
    assert (folder / "study.json").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("log.txt")} == logs
    refused = study(folder.parent / "small.yaml", "overrides.optimizer.lr=0.5", code=2)
    assert "was begun with other options (optimizer.lr: 0.001 -> 0.5)" in refused
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("log.txt")} == logs
    assert "finished  process/seed-1/2-sparse" in study(folder.parent / "small.yaml", "--dry-run")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_half_way_and_started_again_it_is_the_same(
    straight: tuple[Path, str], tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "study"
    path = write(tmp_path, overrides={**SMALL_STUDY["overrides"]})
    process = start(path, "--jobs", "2")
    run = folder / "process/seed-0/2-sparse"  # well within a run, with others before and after it
    until(lambda: process.poll() is not None or (run / "metrics.jsonl").is_file())
    assert process.poll() is None, process.communicate()[0]
    assert len(processes_of(tmp_path)) >= 2
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=LONG)
    assert process.returncode == (-9 if number == signal.SIGKILL else 143), output
    await_end(tmp_path)
    assert not (folder / "study.json").exists()
    logs = [p.parent / "log.txt" for p in folder.rglob("summary.json")]
    done = {log: log.stat().st_mtime_ns for log in logs}
    assert done
    study(path, "--jobs", "2")
    assert {log: log.stat().st_mtime_ns for log in logs} == done  # what was finished was not run again
    assert json.loads((folder / "study.json").read_text()) == json.loads((straight[0] / "study.json").read_text())


def test_a_study_grows(tmp_path: Path) -> None:
    path = write(tmp_path, seeds=[0], arms={"sparse": ["sparse"]})
    study(path)
    log = tmp_path / "study/sparse/seed-0/1-sparse/log.txt"
    before = log.stat().st_mtime_ns
    path = write(tmp_path, arms={"sparse": ["sparse"], "base": []})
    study(path, "overrides.trainer.checkpoint_every=2")
    assert log.stat().st_mtime_ns == before
    found = json.loads((tmp_path / "study/study.json").read_text())
    assert {arm: len(entries[0]["runs"]) for arm, entries in found["arms"].items()} == {"sparse": 2, "base": 2}


def test_a_failing_arm_does_not_stop_the_others(tmp_path: Path) -> None:
    # the judge of this stage is a model that is not there, which only the run itself can find out
    lost = {
        "reward": {
            "name": "outcome",
            "judge": {"name": "smaller_model", "model": {"name": "pretrained", "path": "/nowhere"}},
        }
    }
    stages = {**SMALL_STUDY["stages"], "lost": {**lost, "advantage": {"name": "group"}}}
    arms = {"lost": ["lost", "sparse"], "base": [], "sparse": ["sparse"]}
    output = study(write(tmp_path, stages=stages, arms=arms, seeds=[0]), code=1)
    assert "lost/seed-0/1-lost failed: exit code 2" in output
    assert "no folder /nowhere" in output
    assert "not finished: lost/seed-0/1-lost, lost/seed-0/2-sparse" in output
    found = json.loads((tmp_path / "study/study.json").read_text())
    assert found["arms"]["lost"] == []
    assert found["arms"]["sparse"][0]["runs"][0]["seed"] == 0
    assert found["arms"]["base"][0]["stage"] is None
    assert "lost/seed-0/1-lost" in (tmp_path / "study/study.md").read_text()


def test_an_arm_that_could_not_be_tuned_is_named(tmp_path: Path) -> None:
    # one update is no warm-up, which only the run itself can find out
    usual = ChainModel().max_updates  # of the policy that all tests share
    tune = {"key": "model.max_updates", "values": [usual, 1], "seeds": [100], "measure": "pass@4"}
    path = write(tmp_path, tune=tune, seeds=[0], arms={"sparse": ["sparse", "sparse"]})
    output = study(path, code=1)
    assert "not finished: tune/sparse/1-sparse/1/seed-100, sparse/1-sparse, sparse/2-sparse" in output


def test_only_some_arms_and_the_better_value(tmp_path: Path) -> None:
    # one new token is never a solution, so the choice is known beforehand, though the worse value comes first
    tune = {"key": "evaluation.max_new_tokens", "values": [1, 24], "seeds": [100], "measure": "pass@4"}
    path = write(tmp_path, tune=tune, seeds=[0], arms={"sparse": ["sparse"], "process": ["process"]})
    output = study(path, "--only", "sparse")
    assert "sparse/1-sparse: evaluation.max_new_tokens=24 (pass@4 1: 0.0 %" in output
    found = json.loads((tmp_path / "study/study.json").read_text())
    assert found["tuned"] == {"sparse/1-sparse": 24}
    assert found["tuning"]["sparse/1-sparse"]["1"] == 0.0 < found["tuning"]["sparse/1-sparse"]["24"]
    assert "| sparse/1-sparse | 24 | 0.0 |" in (tmp_path / "study/study.md").read_text()
    assert found["arms"]["process"] == []
    config = yaml.safe_load((tmp_path / "study/sparse/seed-0/1-sparse/config.yaml").read_text())
    assert config["evaluation"]["max_new_tokens"] == 24
    assert not (tmp_path / "study/process").exists()
    assert not (tmp_path / "study/tune/process").exists()
