"""`exprl judge`: a run graded again by its own judge is itself, by another it is not; what is missing is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from exprl import Scorer, load_rollouts
from exprl.cli import main
from exprl.commands import judge
from exprl.rewards.process import ProcessReward
from tests.integration.conftest import ROOT

QUICKSTART = str(ROOT / "configs/quickstart.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small: Any) -> Path:
    from exprl.commands.train import train
    from exprl.terminal.console import Console

    folder = tmp_path_factory.mktemp("finished") / "run"
    options = ("evaluation.source=null", "trainer.max_steps=2", "trainer.print_samples=0", "trainer.rollouts_every=1")
    train(small(*options), folder, resume=False, console=Console(quiet=True))
    return folder


def judged(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main(["judge", *map(str, arguments)])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["judge", *map(str, arguments)])
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_its_own_judge_gives_a_run_its_rewards_back(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = judged(capsys, finished, "--output", tmp_path / "again")
    assert "32 of 32 rollouts have the rewards that they had before" in told
    assert dict(load_rollouts(tmp_path / "again")) == dict(load_rollouts(finished)), "advantages and judgements too"
    again = judged(capsys, tmp_path / "again", finished, "--output", tmp_path / "third")
    assert "32 of 32 rollouts" in again, "what it writes is a source as well"


def test_a_wrong_reference_changes_them(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = judged(capsys, finished, "reward.judge.name=wrong_reference", "--output", tmp_path / "wrong")
    assert {group.scorer for group in load_rollouts(tmp_path / "wrong")[1]} == {
        Scorer(reward="process", judge="wrong_reference around reference_steps")
    }
    same = int(told.split(" of 32 rollouts have")[0].rsplit(maxsplit=1)[-1])
    before, after = load_rollouts(finished), load_rollouts(tmp_path / "wrong")
    counted = sum(
        one.values == other.values
        for step in before
        for old, new in zip(before[step], after[step], strict=True)
        for one, other in zip(old.rewards or (), new.rewards or (), strict=True)
    )
    assert same == counted < 32
    assert all(
        old.rollouts == new.rollouts for step in before for old, new in zip(before[step], after[step], strict=True)
    )


def test_another_slicer_and_view(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("reward.slicer.name=token_window", "reward.slicer.window=5", "reward.show=segment")
    judged(capsys, finished, *options, "--output", tmp_path / "other")
    ends = [
        segment.end - segment.start
        for group in load_rollouts(tmp_path / "other")[1]
        for reward in group.rewards or ()
        for segment in reward.segments[:-1]
    ]
    assert set(ends) == {5}


def test_interrupted_it_goes_on(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "AT_ONCE", 4)  # each of a step's four groups is a part
    score, calls = ProcessReward.score, [0]

    def counted(self: ProcessReward, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        return score(self, *arguments)

    monkeypatch.setattr(ProcessReward, "score", counted)
    with pytest.raises(SystemExit, match="130"):
        judged(capsys, finished, "--output", tmp_path / "out")
    assert "start the same command again" in capsys.readouterr().err
    assert list(load_rollouts(tmp_path / "out")) == [1]
    assert "2 steps, 1 steps done before" in judged(capsys, finished, "--output", tmp_path / "out")
    assert calls == [6 + 3], "five parts were done before"
    assert dict(load_rollouts(tmp_path / "out")) == dict(load_rollouts(finished))
    assert not (tmp_path / "out/unfinished").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.train.count=1", "is neither in data.train nor in evaluation.source"),
        ("data.train.reference_every=2", "has another question, domain, reference or answer there"),
    ],
)
def test_a_missing_scaffold_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    told = refused(capsys, finished, change, "--output", tmp_path / "out")
    first = load_rollouts(finished)[1][0].problem_id
    assert "step 1: problem 'chain-train-" in told
    assert message in told
    if "reference_every" in change:
        assert first in told
    assert not (tmp_path / "out").exists(), "nothing is begun"


def test_an_output_of_something_else_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    judged(capsys, finished, "--output", out)
    assert "reward.show: prefix -> segment" in refused(capsys, finished, "reward.show=segment", "--output", out)
    shutil.copytree(finished / "rollouts", tmp_path / "copy")
    assert "SOURCE: " in refused(capsys, tmp_path / "copy", finished, "--output", out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    assert "already holds something" in refused(capsys, finished, "--output", tmp_path / "mine")


def test_what_cannot_be_graded_again_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = ("reward.judge.name=same_model", "reward.judge.weights=live")
    assert "reward.judge.weights: live were the policy's" in refused(
        capsys, finished, *live, "--output", tmp_path / "o"
    )
    assert "CONFIG: required" in refused(capsys, finished / "rollouts", "--output", tmp_path / "o")
    assert "no rollouts" in refused(capsys, tmp_path, QUICKSTART, "--output", tmp_path / "o")


def test_responses_of_a_file_are_graded(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = load_rollouts(finished)[1][0]
    lines = [{"problem_id": group.problem_id, "response": rollout.text, "correct": True} for rollout in group.rollouts]
    (tmp_path / "responses.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    told = judged(
        capsys, tmp_path / "responses.jsonl", finished, "reward.clip_length=false", "--output", tmp_path / "out"
    )
    assert "4 rollouts graded" in told
    [graded] = load_rollouts(tmp_path / "out")[0]
    assert graded.advantages is None, "no step of a training"
    assert graded.labels is not None
    assert all(label.correct for label in graded.labels)
    assert group.rewards is not None
    for new, old in zip(graded.rewards or (), group.rewards, strict=True):
        assert old.cut_off or new.values == old.values


def test_judges_are_calibrated_on_labelled_responses(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    groups = [group for step in load_rollouts(finished).values() for group in step]
    lines = [
        {
            "problem_id": group.problem_id,
            "response": rollout.text,
            "correct": place % 2 == 0,
            "first_error": 3 * (place % 2),
        }
        for group in groups
        for place, rollout in enumerate(group.rollouts)
    ]
    (tmp_path / "labelled.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    node = {
        "experiment": str(finished / "config.yaml"),
        "source": "labelled.jsonl",
        "folder": str(tmp_path / "results"),
        "judges": {"steps": {"name": "reference_steps"}},
        "resamples": 100,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(node))
    main(["calibrate", str(tmp_path / "mine.yaml")])
    capsys.readouterr()
    written = json.loads((tmp_path / "results/calibration.json").read_text())
    assert [(row["judge"], row["reference"]) for row in written["rows"]] == [
        *(("steps", reference) for reference in ("right", "none", "wrong")),
        ("chance", "–"),
    ]
    assert all(row["rollouts"] == 32 and row["right"] == 16 for row in written["rows"])
    assert {"misplacement", "auroc", "calibration_error", "prefix_auroc"} <= written["rows"][0]["measures"].keys()
    assert {path.name for path in (tmp_path / "results/plots").iterdir()} == {
        *("auroc.png", "reliability-steps.png", "reliability-chance.png")
    }
    main(["calibrate", str(tmp_path / "mine.yaml")])
    assert capsys.readouterr().out.count("1 steps done before") == 3, "nothing is graded twice"
