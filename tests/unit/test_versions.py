"""The stored policy that is nearest to the one that sampled."""

from __future__ import annotations

from pathlib import Path

import pytest

from exprl.runs import versions
from exprl.runs.directory import RunDirectory
from exprl.runs.versions import Version, nearest_versions


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """With checkpoints of steps 10 and 20, of which those that hold text are damaged."""
    found = RunDirectory(tmp_path)
    found.checkpoints.mkdir()
    for step in (10, 20):
        found.checkpoint(step).touch()
    monkeypatch.setattr(versions, "fault", lambda path: path.read_text() or None)
    return found


def test_the_nearest_and_of_two_the_earlier(run: RunDirectory) -> None:
    chosen = nearest_versions(run, [0, 4, 5, 6, 10, 15, 16, 99])
    assert {wanted: version.steps for wanted, version in chosen.items()} == {
        0: 0,
        4: 0,
        5: 0,
        6: 10,
        10: 10,
        15: 10,
        16: 20,
        99: 20,
    }
    assert chosen[0] == Version(0), "the initial policy has no checkpoint"
    assert chosen[10].checkpoint == run.checkpoint(10)


def test_a_damaged_one_is_passed_over(run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    run.checkpoint(10).write_text("a flipped bit")
    assert [version.steps for version in nearest_versions(run, [8, 12]).values()] == [0, 20]
    assert "step-000010.ckpt is damaged (a flipped bit)" in caplog.text


def test_without_checkpoints_it_is_the_initial_policy(tmp_path: Path) -> None:
    assert nearest_versions(RunDirectory(tmp_path), [7]) == {7: Version(0)}
