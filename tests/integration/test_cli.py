"""The command line as a user meets it, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exprl.cli import COMMANDS, main
from exprl.training.interruption import Interrupted
from tests import forked

ROOT = Path(__file__).parents[2]


def exprl(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "exprl", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def failing(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


QUICKSTART = str(ROOT / "configs/quickstart.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "reward.judge.name=reference_step",
            "reward.judge.name: Unknown judge 'reference_step'. Did you mean 'reference_steps'?",
        ),
        ("reward.slicer.window=3", "reward.slicer.window: unknown option"),
        ("trainer.max_step=3", "trainer.max_step: unknown option. Did you mean 'max_steps'?"),
        ("optimizer.lr=fast", "optimizer.lr: expected float, but got 'fast' (str)"),
        ("advantage.name=group", "advantage.name: 'group' takes one reward a rollout"),
        ("update.prompts_per_update=7", "update.prompts_per_update: 7 must divide"),
        (
            "evaluation.k=[64]",
            "evaluation.k: needs one or more numbers up to samples_per_prompt (32), but got [64]. Set "
            "evaluation.k=null for [1, 16, 32]",
        ),
        ("trainer.devices=0", "trainer.devices: must be in [1, "),
        ("trainer.strategy=fsdp", "trainer.strategy: got 'fsdp'. Did you mean 'fsdp2'"),
        ("plugins=[no_such_lab]", "cannot import 'no_such_lab'"),
        ("rollout.top_p=0.9", "rollout.top_p"),
    ],
)
def test_a_wrong_override_is_named(
    override: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert message in failing(capsys, "train", QUICKSTART, override, f"run_dir={tmp_path / 'run'}")


def test_a_missing_config_lists_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'quickstart.yaml'" in failing(capsys, "train", str(ROOT / "configs/quikstart.yaml"))


def test_bad_rows_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    run = f"run_dir={tmp_path / 'run'}"
    data.write_text('{"question": "1+1?", "answer": "2"}\n')
    source = ["data.train.name=jsonl", f"data.train.path={data}", "model.target_accuracy=0.0"]
    assert "reference" in failing(capsys, "train", QUICKSTART, *source, run)
    columns = "data.train.columns.reference=null"
    assert "has no reference solution" in failing(
        capsys, "train", QUICKSTART, *source, columns, f"run_dir={tmp_path / 'run2'}", "data.prompts_per_step=1"
    )
    data.write_text("")
    assert str(data) in failing(capsys, "train", QUICKSTART, *source, f"run_dir={tmp_path / 'run3'}")


def test_list_shows_every_family_with_options() -> None:
    output = exprl("list").stdout
    for name in (
        "delimiter",
        "token_window",
        "same_model",
        "no_reference",
        "wrong_reference",
        "reference_steps",
        "process",
    ):
        assert f"  {name}  " in output
    assert "max_new_tokens = 1024  length limit of a rollout in tokens" in output
    assert exprl("list", "slicers").returncode == 2


def test_config_prints_what_train_would_use() -> None:
    output = exprl("config", "configs/quickstart.yaml", "reward.name=outcome").stdout
    assert "name: outcome" in output
    assert "slicer" not in output


def test_train_then_evaluate_in_processes(tmp_path: Path) -> None:
    from tests.integration.conftest import SMALL

    run = tmp_path / "run"
    with forked.forking():
        trained = exprl("train", "configs/quickstart.yaml", *SMALL, "trainer.max_steps=1", f"run_dir={run}")
    assert trained.returncode == 0, trained.stderr
    assert "TensorBoard" in trained.stdout
    output = tmp_path / "figures.json"
    evaluated = exprl(
        "evaluate", str(run), "evaluation.samples_per_prompt=6", "evaluation.k=[1,2,6]", "--output", str(output)
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert {"pass@1", "pass@2", "pass@6"} <= set(json.loads(output.read_text())["summary"])
    again = exprl("train", "configs/quickstart.yaml", *SMALL, "trainer.max_steps=1", f"run_dir={run}")
    assert again.returncode == 2
    assert "--resume" in again.stderr


def test_list_and_config_in_process(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "judge"])
    assert "weights = required" in " ".join(capsys.readouterr().out.split())
    main(["config", QUICKSTART, "seed=3"])
    assert "seed: 3" in capsys.readouterr().out


def test_evaluate_a_checkpoint_that_does_not_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.save({"state_dict": {"policy.nothing": torch.zeros(1)}}, tmp_path / "other.ckpt")
    arguments = [QUICKSTART, "model.target_accuracy=0.0", "--checkpoint", str(tmp_path / "other.ckpt")]
    assert "does not fit the model" in failing(capsys, "evaluate", *arguments)


def test_evaluate_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "evaluation.source" in failing(capsys, "evaluate", QUICKSTART, "evaluation.source=null")
    arguments = [QUICKSTART, "model.target_accuracy=0.0", "--checkpoint", str(tmp_path / "none.ckpt")]
    assert "no checkpoint" in failing(capsys, "evaluate", *arguments)


@pytest.mark.parametrize(
    ("command", "stopped", "said", "code"),
    [
        (["train", QUICKSTART], Interrupted(signal.SIGTERM), "stopped by SIGTERM; go on with --resume", 143),
        (["mine", QUICKSTART, "--output", "x"], KeyboardInterrupt(), "interrupted; start the same command again", 130),
        (["judge", "run", "--output", "x"], Interrupted(signal.SIGTERM), "SIGTERM; start the same command again", 143),
        (["evaluate", QUICKSTART], Interrupted(signal.SIGTERM), "stopped by SIGTERM\n", 143),
        (["configs"], KeyboardInterrupt(), "interrupted\n", 130),
    ],
)
def test_a_command_that_is_stopped_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    stopped: BaseException,
    said: str,
    code: int,
) -> None:
    def stop(_: object) -> None:
        raise stopped

    monkeypatch.setitem(COMMANDS, command[0], replace(COMMANDS[command[0]], run=stop))
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("left_with", "seen"), [(None, 1), (0, 1), (3, 3)])
def test_a_plugin_that_exits_has_not_finished_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, left_with: int | None, seen: int
) -> None:
    monkeypatch.setitem(COMMANDS, "configs", replace(COMMANDS["configs"], run=lambda _: sys.exit(left_with)))
    with pytest.raises(SystemExit) as left:
        main(["configs"])
    assert left.value.code == seen
    assert "before the end" in capsys.readouterr().err
