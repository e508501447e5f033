"""Configs that come with exprl are found by their names, wherever a config is given, and copied to be edited."""

from __future__ import annotations

from pathlib import Path

import pytest

from exprl import config as configuration
from exprl.cli import main
from exprl.config.shipped import FOLDER, located, shipped
from exprl.errors import ConfigError
from exprl.experiment import load_experiment
from exprl.study.plan import Plan

STUDIES = [name for name in shipped() if name.startswith("studies/")]
CALIBRATIONS = [name for name in shipped() if name.startswith("calibration/")]
PRESETS = [name for name in shipped() if name.startswith("presets/")]
EXPERIMENTS = [name for name in shipped() if name not in (*STUDIES, *CALIBRATIONS, *PRESETS)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_the_names_are_the_paths() -> None:
    assert {"quickstart", "qwen3_4b/process_delta", "studies/miniature"} <= shipped().keys()
    assert Path(__file__).parents[2] / "configs" == FOLDER


def test_each_is_described_by_a_whole_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])
    described = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert described.keys() == shipped().keys()
    assert {name for name, text in described.items() if len(text.split()) < 4 or text[-1] not in ".?!"} == set()


def test_a_file_that_is_there_wins_over_a_name_and_a_folder_does_not() -> None:
    Path("quickstart").mkdir()
    assert located("quickstart") == FOLDER / "quickstart.yaml"
    Path("quickstart").rmdir()
    Path("quickstart").write_text("seed: 7\nmodel: {name: chain}\n")
    assert load_experiment("quickstart").seed == 7
    assert located("quickstart.yaml") == Path("quickstart.yaml")  # names have no suffix: that is a path


def test_extends_names_one_unless_there_is_a_file_beside() -> None:
    Path("mine.yaml").write_text("extends: quickstart\nseed: 3\n")
    experiment = load_experiment("mine.yaml")
    assert (experiment.seed, experiment.model.name) == (3, "chain")
    Path("quickstart").write_text("optimizer: {lr: 0.5}\nmodel: {name: chain}\n")
    assert load_experiment("mine.yaml").optimizer.lr == 0.5


@pytest.mark.parametrize("command", [["train"], ["config"], ["study"], ["mine", "--output", "x.jsonl"], ["evaluate"]])
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("quikstart", "quickstart"),
        ("configs/quickstart.yaml", "quickstart"),
        ("qwen3_4b/proces_delta", "qwen3_4b/process_delta"),
        ("configs/studies/miniatur.yaml", "studies/miniature"),
    ],
)
def test_a_name_that_is_none_is_told_the_one_that_is_meant(
    command: list[str], given: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, command[0], given, *command[1:])
    assert f"Did you mean {meant!r}? Choose one of: ablations/" in said
    assert len(said.splitlines()) == 1


def test_every_command_takes_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Each goes on to what is wrong with the options, past the config; a folder of the name hides nothing."""
    Path("quickstart").mkdir()
    for command in (["train"], ["evaluate"], ["config"], ["mine", "--output", "x.jsonl"]):
        said = refused(capsys, command[0], "quickstart", "trainer.max_stps=2", *command[1:])
        assert "trainer.max_stps: unknown option" in said
    assert "--only: unknown arm 'x'" in refused(capsys, "study", "studies/miniature", "--only", "x")


def test_the_folders_of_runs_are_called_as_by_a_path() -> None:
    assert Plan.load("studies/slicers").folder == Path("runs/slicers")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_copy_is_the_same_experiment(name: str) -> None:
    main(["configs", name, "--copy", "new/folder"])
    copy = Path("new/folder") / f"{name.rpartition('/')[2]}.yaml"
    assert load_experiment(copy) == load_experiment(FOLDER / f"{name}.yaml")


@pytest.mark.parametrize("name", STUDIES)
def test_a_copy_is_the_same_study(name: str) -> None:
    main(["configs", name, "--copy", "."])
    copy, there = (Plan.load(path) for path in (f"{name.rpartition('/')[2]}.yaml", FOLDER / f"{name}.yaml"))
    assert (copy.study.stages, copy.base) == (there.study.stages, there.base)


def test_nothing_is_copied_over_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("quickstart.yaml").write_text("seed: 7\n")
    assert "is there already" in refused(capsys, "configs", "quickstart", "--copy", ".")
    assert Path("quickstart.yaml").read_text() == "seed: 7\n"
    assert "NAME: required with --copy" in refused(capsys, "configs", "--copy", ".")
    assert "Did you mean 'quickstart'" in refused(capsys, "configs", "quikstart", "--copy", ".")


def test_the_list_says_what_each_is(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [*shipped()]
    assert all(line.split("  ")[1].endswith((".", "?")) for line in lines)
    main(["configs", "quickstart"])
    assert capsys.readouterr().out == (FOLDER / "quickstart.yaml").read_text()


def test_a_missing_file_beside_others_is_told_those() -> None:
    Path("my.yaml").touch()
    with pytest.raises(ConfigError, match=r"No config file .*mi\.yaml\. Did you mean 'my\.yaml'"):
        configuration.load_layers("mi.yaml")
