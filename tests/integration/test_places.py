"""A run, a checkpoint or a model where a command expects one or another: it works, or the error is what to type."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from exprl.cli import main
from exprl.errors import ModelError
from exprl.models.pretrained import PretrainedModel
from exprl.runs.checkpoints import find_checkpoint
from exprl.runs.places import place_of
from exprl.terminal.console import Console
from tests.integration.conftest import SMALL
from tests.integration.test_cli import QUICKSTART, failing

OPTIONS = ["trainer.max_steps=2", "trainer.checkpoint_every=1", "evaluation.source.count=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small: Any) -> Path:
    from exprl.commands.train import train

    folder = tmp_path_factory.mktemp("places") / "my run"
    train(small(*OPTIONS), folder, resume=False, console=Console(quiet=True))
    main(["export", str(folder), str(folder.with_name("exported"))])
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], output: Path, *arguments: str) -> str:
    """The weights that `exprl evaluate` says it took."""
    main(["evaluate", *arguments, "--output", str(output)])
    assert json.loads(output.read_text())["summary"]
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "given", ["", "checkpoints", "checkpoints/step-000001.ckpt", "checkpoints/step-000001.ckpt.sha256"]
)
def test_what_lies_in_a_run_is_evaluated(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant = finished / "checkpoints" / f"step-00000{1 if 'step' in given else 2}.ckpt"
    assert find_checkpoint(finished / given)[1] == meant.resolve()
    monkeypatch.chdir(finished)
    told: list[Path] = []
    from exprl.commands import evaluate as command

    load = command.load_policy
    monkeypatch.setattr(
        command, "load_policy", lambda model, path, **how: (told.append(path), load(model, path, **how))
    )
    evaluated(capsys, tmp_path / "figures.json", given or ".")
    assert told[0].resolve() == meant.resolve()


def test_a_checkpoint_is_named_by_option_as_well(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = finished / "checkpoints/step-000001.ckpt"
    again = evaluated(capsys, tmp_path / "one.json", str(finished), "--checkpoint", str(first))
    assert again
    evaluated(capsys, tmp_path / "two.json", str(first))
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    assert "Give one of them" in failing(capsys, "evaluate", str(first), "--checkpoint", str(first))


def test_what_cannot_be_evaluated_says_what_to_type(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = finished.with_name("exported")
    message = failing(capsys, "evaluate", str(exported))
    assert "is a model, which does not say what to evaluate it on." in message
    assert f"exprl evaluate CONFIG model.name=pretrained model.path={shlex.quote(str(exported))}" in message
    assert "is a model" in failing(capsys, "evaluate", str(exported / "model.safetensors"))
    for name in ("lost.ckpt", "best.pth"):
        shutil.copy(finished / "checkpoints/step-000001.ckpt", tmp_path / name)
    assert f"exprl evaluate CONFIG --checkpoint {tmp_path}/lost.ckpt" in failing(
        capsys, "evaluate", str(tmp_path / "lost.ckpt")
    )
    (tmp_path / "empty").mkdir()
    assert "is a folder, but neither a run" in failing(capsys, "evaluate", str(tmp_path / "empty"))
    message = failing(capsys, "evaluate", QUICKSTART, "--checkpoint", str(exported))
    assert f"model.name=pretrained model.path={exported}" in message


def typed(message: str, program: str = "exprl") -> list[str]:
    """The arguments of the first command that a message says to type."""
    return shlex.split(message.partition(f"{program} ")[2].split(". ")[0].removesuffix("."))


@pytest.mark.parametrize("given", ["", "checkpoints/step-000001.ckpt"])
@pytest.mark.parametrize("command", [["train"], ["mine", "--output", "x.jsonl"], ["config"]])
def test_no_config_says_what_to_type(
    finished: Path, capsys: pytest.CaptureFixture[str], command: list[str], given: str
) -> None:
    message = failing(capsys, command[0], str(finished / given), *command[1:])
    assert "where a config is expected" in message
    name, config, *rest = typed(message)
    assert name == command[0]
    assert Path(config).resolve() == (finished / "config.yaml").resolve()
    if name == "train":
        main([name, config, *rest])
        assert "is finished" in capsys.readouterr().out
    elif name == "mine":
        assert rest == ["model.name=pretrained", f"model.path={finished / given}", "--output", "FILE.jsonl"]
    exported = failing(capsys, command[0], str(finished.with_name("exported")), *command[1:])
    assert f"exprl {command[0]} CONFIG model.name=pretrained model.path=" in exported


def test_a_run_is_mined_as_the_message_says(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "hard.jsonl"
    message = failing(capsys, "mine", str(finished / "checkpoints/step-000001.ckpt"), "--output", str(output))
    arguments = [str(output) if item == "FILE.jsonl" else item for item in typed(message)]
    main([*arguments, "data.train.count=2", "evaluation.samples_per_prompt=2", "evaluation.k=[1]"])
    assert output.exists()
    assert len((tmp_path / "hard.counts.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("order", ["before", "after"])
def test_resume_takes_no_path(finished: Path, capsys: pytest.CaptureFixture[str], order: str) -> None:
    checkpoint = str(finished / "checkpoints/step-000001.ckpt")
    more = ["--resume", checkpoint] if order == "after" else [checkpoint, "--resume"]
    message = failing(capsys, "train", QUICKSTART, *SMALL, *OPTIONS, *more)
    assert "--resume takes no path" in message
    assert shlex.join([f"run_dir={finished.resolve()}"]).replace("'run_dir=", "run_dir='") in message


@pytest.mark.parametrize("given", ["checkpoints", "checkpoints/step-000001.ckpt", "checkpoints/step-000099.ckpt"])
def test_a_checkpoint_is_no_run_dir(finished: Path, capsys: pytest.CaptureFixture[str], given: str) -> None:
    before = sorted(finished.rglob("*"))
    message = failing(capsys, "train", QUICKSTART, *SMALL, *OPTIONS, f"run_dir={finished / given}", "--resume")
    assert "it is within the run" in message
    assert sorted(finished.rglob("*")) == before


def test_exports_and_models_take_what_lies_in_a_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", str(finished / "checkpoints"), str(tmp_path / "one")])
    assert "step-000002.ckpt" in capsys.readouterr().out.replace("\n", "")
    exported = finished.with_name("exported")
    assert "is a model already" in failing(capsys, "export", str(exported), str(tmp_path / "two"))
    loaded = PretrainedModel(path=str(finished / "checkpoints")).load()
    assert Path(loaded.model.name_or_path).name == "step-000002"
    with pytest.raises(ModelError, match=r"model\.safetensors is a file\. Give its folder: model\.path="):
        PretrainedModel(path=str(exported / "model.safetensors")).load()


@pytest.mark.parametrize("given", ["gpt2", "/", ".", "/proc/1/mem", "no/such.ckpt"])
def test_anything_else_is_left_to_who_asks(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place_of(Path(given)).kind == "other"
