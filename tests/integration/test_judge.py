"""`exprl judge`: a run graded again by its own judge is itself, by another it is not; what is missing is named."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from exprl import Scorer, load_rollouts
from exprl.cli import main
from exprl.commands import grading
from exprl.rewards.process import ProcessReward
from tests.integration.conftest import ROOT, write_problems

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
    assert "32 rollouts graded, all of them before, 0 of" in judged(capsys, finished, "--output", tmp_path / "again")
    again = judged(capsys, tmp_path / "again", "--output", tmp_path / "third")
    assert "32 of 32 rollouts" in again, "what it writes is a source as well, with a config of its own"


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


WRONG = "reward.judge.name=wrong_reference"
MORE = "data.train.count=17"
"""A problem more than the run had; those that it had are as they were."""


def test_a_judge_that_reads_all_problems_needs_those_that_were_not_attempted_too(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, finished, WRONG, MORE, "--output", tmp_path / "o")
    assert "16 problems then, 17 now" in told
    assert "Judge 'wrong_reference' takes what it shows from all of them" in told
    assert not (tmp_path / "o").exists(), "nothing is begun"
    assert "32 of 32 rollouts have the rewards" in judged(capsys, finished, MORE, "--output", tmp_path / "own")
    judged(capsys, finished, WRONG, "--output", tmp_path / "wrong")
    told = refused(capsys, tmp_path / "wrong", finished, WRONG, MORE, "--output", tmp_path / "o")
    assert "some are others, or in another order" in told, "rollouts that were graded before say so as well"


def test_such_a_judge_goes_on_with_the_same_problems_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "responses.jsonl").write_text(json.dumps({"problem_id": "rows-1", "response": "a"}))
    config = yaml.safe_load((finished / "config.yaml").read_text())
    rows = tmp_path / "rows.jsonl"
    write_problems(rows, 20)
    config["data"]["train"] = {"name": "jsonl", "path": str(rows)}
    config["reward"]["judge"] = {"name": "wrong_reference", "around": config["reward"]["judge"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    command = (tmp_path / "responses.jsonl", tmp_path / "mine.yaml", "--output", tmp_path / "out")
    judged(capsys, *command)
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    assert "was begun with other problems" in refused(capsys, *command)
    about = tmp_path / "out/source.json"
    about.write_text(json.dumps({"source": json.loads(about.read_text())["source"]}))
    assert "1 step done before" in judged(capsys, *command), "an earlier exprl kept nothing of them"


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


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_curves_are_kept_written_and_drawn(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    command = (finished, "reward.curve_every=2", "--output", out, "--curve")
    told = judged(capsys, *command)
    assert "32 of 32 rollouts have the rewards that they had before" in told, "a curve changes no reward"
    curves, stored = lines_of(out / "curves.jsonl"), load_rollouts(out)
    rewarded = [
        (rollout, reward)
        for step in stored.values()
        for group in step
        for rollout, reward in zip(group.rollouts, group.rewards or (), strict=True)
        if not reward.cut_off
    ]
    assert len(curves) == len(rewarded) > 0
    assert f"{len(curves)} curves" in told
    for curve, (rollout, reward) in zip(curves, rewarded, strict=True):
        assert curve["ends"][-1] == curve["tokens"] == len(rollout)
        at = dict(zip(curve["ends"], curve["scores"], strict=True))
        assert [at[end] for end in curve["segments"]] == [judgement.score for judgement in reward.judgements]
        assert len(curve["ends"]) > len(curve["segments"])
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "2 steps done before" in judged(capsys, *command, tmp_path / "mine.jsonl")
    assert lines_of(tmp_path / "mine.jsonl") == curves, "of what is done, elsewhere"


def test_a_curve_knows_the_first_wrong_step(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = load_rollouts(finished)[1][0]
    lines = [
        {"problem_id": group.problem_id, "response": "a+1 2\nb+3 5", "correct": False, "first_error": 6},
        {"problem_id": group.problem_id, "response": "a", "correct": True},
    ]
    (tmp_path / "responses.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    told = judged(capsys, tmp_path / "responses.jsonl", finished, "--output", tmp_path / "out", "--curve")
    wrong, right = lines_of(tmp_path / "out/curves.jsonl")
    graded = load_rollouts(tmp_path / "out")[0][0].rollouts[0]
    assert graded.text_of(0, wrong["first_error"]) == "a+1 2\n"
    assert (wrong["tokens"], wrong["correct"]) == (len(graded), False)
    assert (right["first_error"], right["correct"], right["author"]) == (None, True, None)
    assert "no plot of them: pip install 'exprl[plots]'" in " ".join(told.split())


def test_the_slicer_that_cuts_by_the_curve_is_regraded_to_itself(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("reward.slicer.name=change_point", "reward.slicer.fit=level", "reward.slicer.every=1")
    judged(capsys, finished, *options, "--output", tmp_path / "cut", "--curve")
    told = judged(capsys, tmp_path / "cut", finished, *options, "--output", tmp_path / "again")
    assert "32 of 32 rollouts have the rewards that they had before" in told
    assert dict(load_rollouts(tmp_path / "again")) == dict(load_rollouts(tmp_path / "cut"))


def test_a_curve_that_cannot_be_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--output", tmp_path / "out")
    assert "--curve: the reward 'outcome' asks about no prefixes" in refused(
        capsys, finished, "reward.name=outcome", "advantage.name=group", *out, "--curve"
    )
    assert "reward.curve_every: 64 asks about prefixes, but show is 'segment'" in refused(
        capsys, finished, "reward.show=segment", *out, "--curve"
    )
    assert "FILE must end in .jsonl, but got reward.show=prefix" in refused(
        capsys, finished, *out, "--curve", "reward.show=prefix"
    )
    assert not (tmp_path / "out").exists()


def test_interrupted_it_goes_on(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "AT_ONCE", 4)  # each of a step's four groups is a part
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
    assert "2 steps, 1 step done before" in judged(capsys, finished, "--output", tmp_path / "out")
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
    assert "is SOURCE itself, and graded rollouts need" in refused(capsys, out, "--output", out)
    before = sorted(finished.rglob("*"))
    assert "is a run, and graded rollouts need a folder" in refused(capsys, finished, "--output", finished)
    assert sorted(finished.rglob("*")) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    assert "already holds something" in refused(capsys, finished, "--output", tmp_path / "mine")


def test_a_step_without_rollouts_stays_one(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    store = load_rollouts(run)
    store.write(2, [])
    for _ in range(2):
        assert "16 of 16 rollouts have the rewards" in judged(capsys, run, "--output", tmp_path / "out")
    assert dict(load_rollouts(tmp_path / "out")) == {1: store[1], 2: ()}


def test_what_cannot_be_graded_again_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = ("reward.judge.name=same_model", "reward.judge.weights=live")
    assert "reward.judge.weights: live were the policy's" in refused(
        capsys, finished, *live, "--output", tmp_path / "o"
    )
    nothing = tmp_path / "runs/nothing"
    assert f"SOURCE: {nothing} does not exist" in refused(capsys, nothing, "--output", tmp_path / "o")
    assert f"{nothing} does not exist. Give a run" in refused(capsys, nothing, QUICKSTART, "--output", tmp_path / "o")
    assert "CONFIG: required" in refused(capsys, finished / "rollouts", "--output", tmp_path / "o")
    assert "no rollouts" in refused(capsys, tmp_path, QUICKSTART, "--output", tmp_path / "o")
    (tmp_path / "file").write_text("keep")
    assert "--output: " in refused(capsys, finished, "--output", tmp_path / "file")


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
