"""What `exprl` loads before it answers: libraries that take seconds come only once a config is known to be right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICKSTART, CHAMP = (str(ROOT / "configs" / name) for name in ("quickstart.yaml", "smollm2_champ.yaml"))
HEAVY = ("torch", "transformers", "lightning", "peft", "vllm", "datasets", "pandas", "sympy")

ANSWERS = {
    "help": ["--help"],
    "help of a command": ["train", "--help"],
    "version": ["--version"],
    "list": ["list"],
    "list of a family": ["list", "backend"],
    "config": ["config", QUICKSTART],
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
}
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
    commands = {**ANSWERS, "no such file": ["train", "no_such.yaml"]}
    commands |= {name: ["train", QUICKSTART, *overrides] for name, overrides in ERRORS.items()}
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY}\n{SCRIPT}"],
        input=json.dumps(commands),
        cwd=tmp_path_factory.mktemp("startup"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, str, list[str]]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_loads_nothing_heavy(outcomes, name):
    code, said, loaded = outcomes[name]
    assert (code, loaded) == (0, []), said


@pytest.mark.parametrize("name", [*ERRORS, "no such file"])
def test_a_wrong_config_is_refused_before_anything_heavy_is_loaded(outcomes, name):
    code, said, loaded = outcomes[name]
    assert (code, loaded) == (2, []), said
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
