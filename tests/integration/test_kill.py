"""A run killed with SIGKILL and resumed is the run that was never stopped, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from exprl.training.module import ExpRLModule
from tests.forked import genuine
from tests.integration.processes import assert_same_run, execute, steps

pytestmark = pytest.mark.usefixtures("forking")

KILLED = -9
STEP = random.Random().randint(2, 4)  # any will do; printed by pytest when it fails


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    done = execute(folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert steps(folder) == [3, 4]
    return folder


@pytest.mark.parametrize("where", ["sampling", "gradients", "writing"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(straight: Path, tmp_path: Path, where: str) -> None:
    folder = tmp_path / "run"
    killed = execute(folder, fault=f"kill:{where}:{STEP}")
    assert killed.returncode == KILLED, (STEP, killed.stderr[-2000:])
    assert steps(folder)[-1] == STEP - 1
    resumed = execute(folder)
    assert resumed.returncode == 0, (STEP, resumed.stderr[-2000:])
    assert f"resuming after step {STEP - 1}" in resumed.stdout
    assert_same_run(folder, straight)
    assert not list((folder / "checkpoints").glob("*.writing"))


def test_killed_before_its_first_checkpoint_it_starts_over(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert execute(folder, "trainer.checkpoint_every=0", fault="kill:gradients:3").returncode == KILLED
    assert not steps(folder)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "half a li')
    with genuine():
        assert execute(folder, "trainer.checkpoint_every=0").returncode == 0
    assert_same_run(folder, straight)


def test_sigterm_saves_the_finished_steps(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped = execute(folder, "trainer.checkpoint_every=0", fault="terminate:judging:3")
    assert stopped.returncode == 128 + 15
    assert "--resume" in stopped.stderr
    assert steps(folder) == [2]
    assert execute(folder, "trainer.checkpoint_every=0").returncode == 0
    assert_same_run(folder, straight)


def test_sigterm_during_an_update_waits_for_its_end(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped = execute(folder, "trainer.checkpoint_every=0", fault="terminate:gradients:3")
    assert stopped.returncode == 128 + 15
    assert steps(folder) == [3]
    assert execute(folder, "trainer.checkpoint_every=0").returncode == 0
    assert_same_run(folder, straight)


def test_a_step_that_fails_after_its_update_is_not_saved_with_the_data_of_the_one_before(
    small: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ExpRLModule.describe

    def describe(self: ExpRLModule, *scored: Any) -> dict[str, float]:
        if self.steps_done == 2:
            raise RuntimeError("the verifier is gone")
        return original(self, *scored)

    monkeypatch.setattr(ExpRLModule, "describe", describe)
    with pytest.raises(RuntimeError, match="verifier"):
        run(small("evaluation.source=null", "trainer.checkpoint_every=1"))
    assert steps(tmp_path / "run") == [1]
