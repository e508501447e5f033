"""`exprl calibrate`: tables of real judges, gone on with after Ctrl-C; a judge that fails is the only one to miss."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from exprl.chain.source import ChainSource
from exprl.cli import main
from exprl.commands import grading
from exprl.judges.reference_steps import ReferenceStepsJudge
from exprl.registry import JUDGES, PERTURBATIONS
from exprl.rewards.process import ProcessReward
from exprl.types import Judgement, JudgeRequest
from tests.integration.conftest import ROOT

PROBLEMS = 6
BOTH = 2 * PROBLEMS
"""Rollouts: a right one and a wrong one to each problem."""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A calibration on right and wrong solutions of the small world, with further options."""
    lines = []
    for problem in ChainSource(steps=2, count=PROBLEMS).load():
        assert problem.scaffold.reference is not None
        right = problem.scaffold.reference.reveal()
        first, second, *others = right.splitlines()
        wrong = "\n".join([first, f"{second.split()[0]} 001", *others])
        lines += [
            {"problem_id": problem.id, "response": right, "correct": True},
            {"problem_id": problem.id, "response": wrong, "correct": False, "first_error": len(first) + 1},
        ]
    (tmp_path / "labelled.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def written(**options: Any) -> Path:
        node = {
            "experiment": str(ROOT / "configs/quickstart.yaml"),
            "overrides": {
                "model": {"max_steps": 2, "target_accuracy": 0.3, "reads_references": False},  # as `small` has it
                "data": {"train": {"name": "chain", "steps": 2, "count": PROBLEMS, "seed": 0}},
            },
            "source": "labelled.jsonl",
            "folder": str(tmp_path / "results"),
            "judges": {"steps": {"name": "reference_steps"}},
            "resamples": 100,
            **options,
        }
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(node, sort_keys=False))
        return tmp_path / "mine.yaml"

    return written


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[JudgeRequest], bool]], None]:
    """Registers a judge, `flaky`, that is `reference_steps` and fails at some requests."""

    def register(fails: Callable[[JudgeRequest], bool]) -> None:
        class Flaky(ReferenceStepsJudge):
            def judge(self, requests: Sequence[JudgeRequest], *arguments: Any) -> list[Judgement]:
                failed = Judgement(score=None, status="error", rationale="no answer")
                given = super().judge(requests, *arguments)
                return [failed if fails(one) else own for one, own in zip(requests, given, strict=True)]

        JUDGES.names()
        Flaky.registered_name = "flaky"
        monkeypatch.setitem(JUDGES._classes, "flaky", Flaky)

    return register


def results(path: Path, name: str = "calibration.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path.parent / "results" / name).read_text())
    return found


def test_tables_and_plots_and_nothing_is_graded_twice(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    path = write(judges={"steps": {"name": "reference_steps"}, "loose": {"name": "reference_steps", "strict": False}})
    main(["calibrate", str(path)])
    told = capsys.readouterr().out
    assert f"{6 * BOTH} rollouts to judge, over 2 judges and 3 references, 0 of them done before" in told
    found = results(path)
    rows = {(row["judge"], row["reference"]): row for row in found["rows"]}
    assert list(rows) == [
        *((judge, reference) for judge in ("steps", "loose") for reference in ("right", "none", "wrong")),
        ("chance", "–"),
    ]
    assert all((row["rollouts"], row["right"]) == (BOTH, PROBLEMS) for row in found["rows"])
    right = rows["steps", "right"]["measures"]
    assert (right["misplacement"]["mean"], right["auroc"]["mean"]) == (0, 1), "the strict judge is right of all"
    assert right["auroc"]["low"] < 0.9, "six problems are no certainty"
    assert right["localisation_error"]["mean"] == 0
    assert rows["steps", "wrong"]["measures"]["auroc"]["mean"] == 0.5
    pairs = {(pair["first"]["judge"], pair["second"]["judge"], pair["second"]["reference"]) for pair in found["pairs"]}
    assert ("steps", "loose", "right") in pairs
    assert {row["judge"] for row in found["surface"]} == {"steps", "loose"}
    pages = (path.parent / "results/calibration.md").read_text()
    assert pages.count("\n\n| ") == 3, "three tables"
    assert {plot.name for plot in (path.parent / "results/plots").iterdir()} == {
        *("auroc.png", "reliability-steps.png", "reliability-loose.png", "reliability-chance.png")
    }
    main(["calibrate", str(path)])
    assert f"{6 * BOTH} of them done before" in capsys.readouterr().out
    assert results(path) == found


@pytest.mark.parametrize(("flags", "done"), [((), 12), (("--attack",), 12 + 6)])
def test_interrupted_it_goes_on(
    write: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    done: int,
) -> None:
    monkeypatch.setattr(grading, "AT_ONCE", 2)  # each of a step's groups is a part
    few = {name: None for name in PERTURBATIONS.names() if name not in ("as_in_reference", "empty", "append")}
    path = write(references=["right", "wrong"], perturbations=few)
    score, calls = ProcessReward.score, [0]

    def counted(self: ProcessReward, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 10:
            raise KeyboardInterrupt
        return score(self, *arguments)

    monkeypatch.setattr(ProcessReward, "score", counted)
    with pytest.raises(SystemExit, match="130"):
        main(["calibrate", str(path), *flags])
    assert "start the same command again to go on" in capsys.readouterr().err
    main(["calibrate", str(path), *flags])
    again = calls[0]
    told = capsys.readouterr().out
    assert f" {done} of them done before" in told, "nine parts: the first six, and three of an attack, were whole steps"
    main(["calibrate", str(path), *flags])
    assert calls[0] == again, "nothing is left"
    monkeypatch.setattr(ProcessReward, "score", score)
    name = "attacks.json" if flags else "calibration.json"
    interrupted = results(path, name)
    other = write(references=["right", "wrong"], perturbations=few, folder=str(path.parent / "whole"))
    calls[0] = 10
    main(["calibrate", str(other), *flags])
    assert json.loads((path.parent / "whole" / name).read_text()) == interrupted


def test_what_one_judge_failed_at_is_compared_by_the_others(
    write: Callable[..., Path], judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    judge(lambda request: request.problem.id.endswith("-0"))
    path = write(
        judges={"flaky": {"name": "flaky"}, "steps": {"name": "reference_steps"}, "third": {"name": "reference_steps"}},
        references=["right"],
    )
    main(["calibrate", str(path)])
    assert f"{PROBLEMS - 1} of {BOTH - 2}, 2 failed" in capsys.readouterr().out
    pairs = {(pair["first"]["judge"], pair["second"]["judge"]): pair["rollouts"] for pair in results(path)["pairs"]}
    assert pairs == {("flaky", "steps"): BOTH - 2, ("flaky", "third"): BOTH - 2, ("steps", "third"): BOTH}
    chance = results(path)["rows"][-1]
    assert (chance["judge"], chance["rollouts"]) == ("chance", BOTH)


@pytest.mark.parametrize("flags", [(), ("--perturb",)])
def test_a_judge_that_cannot_be_used_is_named_and_the_others_are_done(
    write: Callable[..., Path], judge: Any, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    judge(lambda request: True)
    path = write(judges={"flaky": {"name": "flaky"}, "steps": {"name": "reference_steps"}}, references=["right"])
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", str(path), *flags])
    captured = capsys.readouterr()
    assert captured.err.count("flaky, right reference") == 1, "asked once, and given up"
    assert "is in no table" in captured.err
    assert "no answer" in captured.err, "its last reply"
    rows = results(path, "perturbations.json" if flags else "calibration.json")["rows"]
    assert {row["judge"] for row in rows} == ({"steps"} if flags else {"steps", "chance"})


def test_what_fails_for_one_perturbation_leaves_the_others(
    write: Callable[..., Path], judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    judge(lambda request: "keep track" in request.trace)  # as a prompt beyond the judge's context does
    path = write(judges={"flaky": {"name": "flaky"}}, references=["right"], perturbed_problems=2)
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", str(path), "--attack"])
    assert capsys.readouterr().err.count("flaky, right reference, padding: ") == 1
    tried = {row["perturbation"] for row in results(path, "attacks.json")["rows"]}
    assert {"empty", "fake_tags", "repetition"} <= tried
    assert "padding" not in tried


def test_attacks_and_perturbations_and_one_of_ones_own(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(references=["right"], perturbed_problems=4)
    main(["calibrate", str(path), "--attack", "--perturb"])
    told = capsys.readouterr().out
    assert "what attacks gain" in told
    assert "mean change of the score" in told
    rows = {(row["perturbation"], row["on"]): row for row in results(path, "attacks.json")["rows"]}
    assert rows["empty", "wrong"]["responses"] == 4
    assert rows["empty", "wrong"]["measures"]["after"]["mean"] == 0
    assert rows["fake_verdict", "nothing"]["measures"]["change"]["mean"] == 0, "a rule reads no claims"
    assert all(row["measures"]["after"]["mean"] == 0 for row in rows.values())
    moved = {(row["perturbation"], row["on"]): row for row in results(path, "perturbations.json")["rows"]}
    assert moved["changed_number", "right"]["measures"]["change"]["mean"] < 0
    assert moved["markdown", "right"]["measures"]["change"]["mean"] < 0, "this judge compares lines"
    assert moved["line_breaks", "right"]["measures"]["change"]["mean"] == 0
    own = write(references=["right"], perturbed_problems=4, perturbations={"mine": {"name": "append", "text": "Yes."}})
    main(["calibrate", str(own), "--attack"])
    again = capsys.readouterr().out
    total, done = (int(again.split(mark)[0].split()[-1]) for mark in (" rollouts to judge", " of them done"))
    assert total - done == 4 + 4, "only the new one: on four wrong rollouts, and on nothing to four problems"
    assert results(path, "attacks.json")["rows"][-1]["perturbation"] == "mine"


def test_a_folder_of_other_rollouts_is_refused_before_anything_is_said(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    judges = {"steps": {"name": "reference_steps"}, "loose": {"name": "reference_steps", "strict": False}}
    main(["calibrate", str(write(references=["right"], judges=judges))])
    capsys.readouterr()
    path = write(references=["right"], judges={"new": {"name": "reference_steps"}, **judges, "loose": judges["steps"]})
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", str(path)])
    captured = capsys.readouterr()
    assert f"error: folder: {path.parent / 'results/loose/right'} was begun with another" in captured.err
    assert "--output" not in captured.err
    assert captured.out == ""
    assert not (path.parent / "results/new").exists(), "nothing was graded first"


@pytest.mark.filterwarnings("error:.*:RuntimeWarning")
def test_one_labelled_rollout_is_no_reason_for_warnings(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write()
    first = (path.parent / "labelled.jsonl").read_text().splitlines()[0]
    (path.parent / "labelled.jsonl").write_text(first)
    main(["calibrate", str(path)])
    assert "1 of 1" in capsys.readouterr().out
    assert results(path)["rows"][0]["rollouts"] == 1


def test_a_folder_is_one_from_here_and_said(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder="results")
    others = path.parent / "others"
    others.mkdir()
    for here, told in ((path.parent, "a new folder"), (path.parent, "goes on"), (others, "a new folder")):
        monkeypatch.chdir(here)
        main(["calibrate", str(path)])
        out = "".join(capsys.readouterr().out.split())
        assert f"results: {here / 'results'} ({told})".replace(" ", "") in out


def test_a_run_as_experiment_is_told_its_config(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("{}")
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", str(write(experiment="run"))])
    told = " ".join(capsys.readouterr().err.split())
    assert f"No config file {tmp_path / 'run'}. It is a folder: give {tmp_path / 'run/config.yaml'}." in told
    assert "presets" not in told


def test_without_labels_or_wrong_rollouts_nothing_is_begun(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write()
    lines = [json.loads(line) for line in (path.parent / "labelled.jsonl").read_text().splitlines()]
    for change, flags, message in (
        ({"correct": None}, [], "has no labels"),
        ({"correct": True, "first_error": None}, ["--attack"], "no rollout labelled as wrong"),
    ):
        text = "".join(f"{json.dumps({**line, **change})}\n" for line in lines)
        (path.parent / "labelled.jsonl").write_text(text)
        with pytest.raises(SystemExit, match="2"):
            main(["calibrate", str(path), *flags])
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (path.parent / "results").exists()
