"""Folders of graded rollouts are begun once, also where a kill came between two files, and go on with the same only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exprl.commands.claims import Wording, claim
from exprl.errors import DataError, PathError
from exprl.experiment import Experiment, load_experiment
from exprl.files import disk
from exprl.files.lock import LOCK
from tests.rollouts import problem_of

SOURCE = "/runs/mine"


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return load_experiment(Path(__file__).parents[2] / "configs/quickstart.yaml")


def test_what_an_interrupted_claim_left_is_claimed_again(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each of its steps: a draft is written, it takes its place, for both files."""
    replace, killed = Path.replace, 0

    class Killed(BaseException):
        pass

    for last in range(4):
        folder = tmp_path / str(last)
        folder.mkdir()
        (folder / LOCK).write_text("1 here")
        steps = 0

        def until(draft: Path, target: Path, last: int = last) -> Path:
            nonlocal steps
            steps += 2
            if steps - 2 == last:
                raise Killed
            replace(draft, target)
            if steps - 1 == last:
                raise Killed
            return target

        with monkeypatch.context() as patch:
            patch.setattr(disk.Path, "replace", until)
            patch.setattr(disk.Path, "unlink", lambda path, missing_ok: None)  # SIGKILL tidies nothing
            with pytest.raises(Killed):
                claim(folder, experiment, SOURCE, problems=[problem_of()])
        killed += bool({path.name for path in folder.iterdir()} - {LOCK})
        claim(folder, experiment, SOURCE, problems=[problem_of()])
        claim(folder, experiment, SOURCE, problems=[problem_of()])
        assert {path.name for path in folder.iterdir()} == {LOCK, "source.json", "config.yaml"}, "no draft stays"
    assert killed == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", "keep"),
        ("source.json", '{"source": "/runs/other"}'),
        ("source.json", "keep"),
        (".source.json", "keep"),
        ("step-000001-00000-of-00001.npz", ""),
    ],
)
def test_what_is_somebody_elses_is_not(tmp_path: Path, experiment: Experiment, name: str, content: str) -> None:
    (tmp_path / ".source.json.abc").write_text("")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"--output: {tmp_path} already holds something"):
        claim(tmp_path, experiment, SOURCE)
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize("content", ["{}", '{"source": 1}', '{"source": "/runs/mine", "problems": []}'])
def test_a_damaged_source_is_named(tmp_path: Path, experiment: Experiment, content: str) -> None:
    claim(tmp_path, experiment, SOURCE)
    (tmp_path / "source.json").write_text(content)
    with pytest.raises(PathError, match=f"{tmp_path}/source.json is damaged.*Choose another --output"):
        claim(tmp_path, experiment, SOURCE)


def test_messages_name_the_option_that_gave_the_folder(tmp_path: Path, experiment: Experiment) -> None:
    claim(tmp_path, experiment, SOURCE)
    assert json.loads((tmp_path / "source.json").read_text()) == {"source": SOURCE}
    with pytest.raises(DataError, match=rf"^folder: {tmp_path} was begun with another .*SOURCE: .* Take another\.$"):
        claim(tmp_path, experiment, "/runs/other", wording=Wording(option="folder", advice="Take another."))
