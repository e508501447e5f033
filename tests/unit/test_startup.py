"""What `exprl` loads before it answers: libraries that take seconds come only once a config is known to be right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from exprl.chain.model import ChainModel
from exprl.commands.train import TrainingRun
from exprl.errors import ConfigError
from exprl.experiment import load_experiment
from exprl.runs.directory import RunDirectory
from exprl.terminal.console import Console

ROOT = Path(__file__).parents[2]
QUICKSTART, CHAMP = (str(ROOT / "configs" / name) for name in ("quickstart.yaml", "smollm2_champ.yaml"))
HEAVY = ("torch", "transformers", "lightning", "peft", "vllm", "datasets", "pandas", "sympy")

ANSWERS = {
    "help": ["--help"],
    "help of a command": ["train", "--help"],
    "help of the doctor": ["doctor", "--help"],
    "version": ["--version"],
    "list": ["list"],
    "list of a family": ["list", "backend"],
    "config": ["config", QUICKSTART],
    "config by name": ["config", "qwen3_4b/process_delta"],
    "configs": ["configs"],
    "what a study would run": ["study", "studies/miniature", "--dry-run"],
    "config with another of every family": [
        "config",
        CHAMP,
        "rollout.name=vllm",
        "verifier.name=exact",
        "reward.judge.name=smaller_model",
        "reward.judge.backend.name=vllm",
        "evaluation.behaviours.name=lexical",
        "reward.judge.model={name: pretrained, path: gpt2}",
        "objective.name=reinforce",
        "advantage.name=segment_end",
    ],
}
ERRORS = {
    "unknown section": ["trainr.max_steps=2"],
    "unknown option": ["trainer.max_stps=2"],
    "unknown option of a component": ["rollout.batchsize=2"],
    "unknown component": ["reward.name=procces"],
    "wrong type": ["optimizer.lr=fast"],
    "out of range": ["rollout.temperature=0"],
    "a choice that is none": ["trainer.precision=bf16-true"],
    "a wrong combination": ["reward.name=process", "advantage.name=group"],
    "a wrong combination of options": ["trainer.cpu_offload=true"],
    "no YAML": ["trainer.max_steps=[1"],
    "no override": ["=2"],
    "a section that is a number": ["trainer=3"],
    "an interpolation of nothing": ["seed=${nothing}"],
    "a plugin that is not there": ["plugins=[no_such_plugin]"],
    "no data": ["data.train=null"],
    "no file of data": ["data.train={name: jsonl, path: no_such.jsonl}"],
    "no held-out file": ["evaluation.source={name: parquet, path: no_such.parquet}"],
    "no folder of a model": ["model={name: pretrained, path: ./no_such}"],
    "no package of a model": ["model={name: pretrained, path: 'package:no_such'}"],
    "no GGUF file in a model's folder": ["model={name: pretrained, path: '.', gguf_file: no_such.gguf}"],
    "no file of a chat template": ["model={name: pretrained, path: gpt2, chat_template: no_such.jinja}"],
    "no folder of a judge's model": [
        "reward={name: process, judge: {name: smaller_model, model: {name: pretrained, path: ./no_such}}}",
        "advantage.name=segment_delta",
    ],
    "a judge that its backend cannot constrain": [
        "reward={name: process, judge: {name: same_model, weights: live, scoring: rationale, constrained: true}}"
    ],
    "a judge without an engine": [
        "reward={name: process, judge: {name: same_model, weights: frozen}}",
        "rollout.name=vllm",
    ],
    "an engine that does not train": ["rollout={name: server, url: 'http://localhost:1', model: x}"],
    "devices that cannot share a step": ["data.prompts_per_step=2", "trainer.devices=3"],
    "a folder that cannot be made": ["run_dir=a_file/run"],
    "a folder with something in it": ["run_dir=."],
}
COMMANDS = {
    "no such config": ["train", "no_such.yaml"],
    "evaluate without problems": ["evaluate", QUICKSTART, "evaluation.source=null"],
    "evaluate a checkpoint that is not there": ["evaluate", QUICKSTART, "--checkpoint", "no_such.ckpt"],
    "mine without problems": ["mine", QUICKSTART, "data.train=null", "--output", "x.jsonl"],
    "mine no rates": ["mine", QUICKSTART, "--output", "x.jsonl", "--max-rate", "3"],
    "mine into a file that cannot be": ["mine", QUICKSTART, "--output", "a_file/x.jsonl"],
    "mine into a file of another kind": ["mine", QUICKSTART, "--output", "x.csv"],
    "evaluate into a file that cannot be": ["evaluate", QUICKSTART, "--output", "a_file/x.json"],
    "no such config by name": ["train", "quikstart"],
    "no such config to copy": ["configs", "quikstart", "--copy", "."],
    "export what is not there": ["export", "no_such", "out"],
    "a study that is none": ["study", QUICKSTART],
    "a timeline of no run": ["timeline", "no_such"],
    "a timeline of no steps": ["timeline", "no_such", "--steps", "b:a"],
}
MACHINE = {
    "an accelerator that is not there": ["trainer.accelerator=mps"],
    "kernels that cannot run": ["trainer.accelerator=cpu", "update.kernels=triton"],
}
"""What takes torch to know; last, as it stays loaded."""
SCRIPT = """
import contextlib, io, json, sys
from exprl.cli import main

found = {}
for name, arguments in json.load(sys.stdin).items():
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(arguments) or 0
        except SystemExit as error:
            code = error.code
    found[name] = [code, said.getvalue(), [library for library in HEAVY if library in sys.modules]]
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    """Exit code, output and the heavy libraries loaded so far of every command, all in one process."""
    folder = tmp_path_factory.mktemp("startup")
    (folder / "a_file").touch()
    wrong = {name: ["train", QUICKSTART, *overrides] for name, overrides in {**ERRORS, **MACHINE}.items()}
    commands = {**ANSWERS, **COMMANDS, **wrong}
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY}\n{SCRIPT}"],
        input=json.dumps(commands),
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["a_file"]  # nothing was begun
    found: dict[str, tuple[int, str, list[str]]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_loads_nothing_heavy(outcomes, name):
    code, said, loaded = outcomes[name]
    assert (code, loaded) == (0, []), said


@pytest.mark.parametrize("name", [*ERRORS, *COMMANDS])
def test_a_wrong_config_is_refused_before_anything_heavy_is_loaded(outcomes, name):
    code, said, loaded = outcomes[name]
    assert (code, loaded) == (2, []), said
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="here the accelerator is there")
@pytest.mark.parametrize("name", MACHINE)
def test_what_the_machine_lacks_is_told_with_torch_alone(outcomes, name):
    code, said, loaded = outcomes[name]
    assert (code, [library for library in loaded if library != "torch"]) == (2, []), said
    assert said.startswith("error: ")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.prompts_per_step=5000"], r"data\.prompts_per_step: 5000, but there are 4096 training problems"),
        (["update.kernels=triton"], r"update\.kernels: triton cannot run here"),
        (["data.train=null"], r"data\.train: required for training"),
        (["rollout={name: server, url: 'http://localhost:1', model: x}"], "only evaluates"),
    ],
)
def test_no_model_is_loaded_for_an_error_that_is_known_without(overrides, message, monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(ChainModel, "load", lambda model: pytest.fail("the model was loaded first"))
    experiment = load_experiment(QUICKSTART, ["trainer.accelerator=cpu", *overrides])
    run = TrainingRun(experiment, RunDirectory(tmp_path / "run"), Console(quiet=True))
    with pytest.raises(ConfigError, match=message):
        run.prepare()
