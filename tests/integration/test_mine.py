"""`exprl mine`: what is written, that it reads back, and that a killed run goes on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exprl.commands import mine as mining
from exprl.commands.mine import histogram, mine, reading, row, tell_reading
from exprl.component import Choice
from exprl.config import from_layers
from exprl.engines.transformers import TransformersEngine
from exprl.errors import ConfigError, DataError
from exprl.evaluation.rates import Count, Rates
from exprl.experiment import Experiment, load_experiment
from exprl.resources import Resources
from exprl.terminal.console import Console
from tests import forked
from tests.fork_server import VLLM
from tests.integration.conftest import ROOT, SMALL
from tests.vllm.serving import serving
from tests.waiting import LONG, until

pytestmark = pytest.mark.usefixtures("forking")

ALL = Rates(0.0, 1.0)


@pytest.fixture
def rows(small: Any, tmp_path: Path) -> Any:
    """Mine the small world in batches of four; returns the rows written."""

    def execute(
        name: str = "hard.jsonl", rates: Rates = ALL, *overrides: str, train: Choice | None = None
    ) -> list[dict[str, Any]]:
        experiment = small(*overrides)
        if train is not None:
            experiment = replace(experiment, data=replace(experiment.data, train=train))
        with (tmp_path / "log").open("a") as log:
            mine(experiment, tmp_path / name, rates, console=Console(file=log, width=100))
        return read(tmp_path / name)

    return execute


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "BATCH", 4)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_data_set_reads_back_whole(small: Any, rows: Any, tmp_path: Path) -> None:
    written = rows()
    problems = small().data.train.build(Resources()).load()
    assert len(written) == len(problems) == 16
    assert any(0 < row["correct"] < row["samples"] for row in written)
    assert printed(tmp_path / "log").build(Resources()).load() == problems


def test_the_counts_are_right(small: Any, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from exprl.verifiers import ExactVerifier

    seen: dict[str, list[bool]] = {}
    verify = ExactVerifier.verify

    def noting(self: Any, problem: Any, response: str) -> bool:
        right = verify(self, problem, response)
        seen.setdefault(problem.id, []).append(right)
        return right

    monkeypatch.setattr(ExactVerifier, "verify", noting)
    written = rows()
    assert {row["id"]: row["correct"] for row in written} == {name: sum(right) for name, right in seen.items()}
    assert {row["samples"] for row in written} == {4}
    assert all(row["solve_rate"] == row["correct"] / 4 for row in written)


def test_rates_choose_and_changing_them_samples_nothing(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    every = rows()
    monkeypatch.setattr(TransformersEngine, "generate", lambda *_: pytest.fail("sampled again"))
    hard = rows("hard.jsonl", Rates())
    assert hard == [row for row in every if row["correct"] == 0]
    some = rows("hard.jsonl", Rates(0.25, 0.5))
    assert some == [row for row in every if row["correct"] in (1, 2)]
    assert 0 < len(hard) < len(every)


def jsonl(path: Path, problems: list[dict[str, Any]], **columns: Any) -> Choice:
    path.write_text("".join(f"{json.dumps(problem)}\n" for problem in problems))
    return train_of({"name": "jsonl", "path": str(path), "columns": {"id": "id", **columns}})


def train_of(node: dict[str, Any]) -> Choice:
    source = from_layers(Experiment, [{"data": {"train": node}, "model": {"path": "unused"}}]).data.train
    assert source is not None
    return source


def printed(log: Path) -> Choice:
    """The source that the end of the log says to read, the same from its YAML and from its override."""
    _, in_yaml, override = re.split("in a YAML file:\n|or on the command line:\n", log.read_text())[-3:]
    (pasted := log.with_name("pasted.yaml")).write_text(f"model: {{path: unused}}\n{in_yaml}")
    source = load_experiment(pasted).data.train
    assert source == load_experiment(None, ["model.path=unused", *shlex.split(override)]).data.train
    assert source is not None
    return source


def test_what_is_printed_is_all_there_is_over_another_source(rows: Any, tmp_path: Path) -> None:
    rows()
    own = tmp_path / "own.yaml"
    own.write_text("model: {path: unused}\ndata: {train: {name: jsonl, path: x, limit: 1, columns: {question: q}}}\n")
    override = shlex.split((tmp_path / "log").read_text().rpartition("or on the command line:\n")[2])
    assert load_experiment(own, override).data.train == printed(tmp_path / "log")


def test_any_path_can_be_pasted(tmp_path: Path) -> None:
    path = tmp_path / "it's: a #1 \u00e9 {x} ${y}" / "hard.jsonl"
    with (tmp_path / "log").open("w") as log:
        tell_reading(path, Console(file=log, width=40))
    assert printed(tmp_path / "log").config.path == str(path)


def test_batches_do_not_sample_alike(rows: Any, tmp_path: Path) -> None:
    # one problem in every place: equal random numbers would give the same four counts in each of the four batches
    one = rows("easy.jsonl", ALL, "data.train.steps=1", "data.train.count=4")[0]
    train = jsonl(tmp_path / "same.jsonl", [{**one, "id": str(number)} for number in range(16)])
    options = ("evaluation.samples_per_prompt=64", "evaluation.k=[1]")
    counts = [row["correct"] for row in rows("a.jsonl", ALL, *options, train=train)]
    assert len({tuple(counts[start : start + 4]) for start in range(0, 16, 4)}) > 1


@pytest.mark.parametrize("lacking", [{"steps"}, {"reference", "steps"}])
def test_problems_that_lack_something_read_back(rows: Any, tmp_path: Path, lacking: set[str]) -> None:
    # all but the first lack it, so the column is there, but not in every row
    whole, *others = rows("whole.jsonl")
    problems = [whole, *({key: value for key, value in row.items() if key not in lacking} for row in others)]
    train = jsonl(tmp_path / "partial.jsonl", problems, steps="steps", partial=True)
    written = rows("hard.jsonl", ALL, train=train)
    assert [row.keys() for row in written] == [row.keys() for row in problems]
    assert printed(tmp_path / "log").build(Resources()).load() == train.build(Resources()).load()


def test_everything_hidden_is_written_and_reads_back(tmp_path: Path) -> None:
    hidden = {"reference": "Add.", "answer": "4", "steps": ["2", "4"], "variants": ["Double."]}
    structures = {"rubric": [{"title": "Add", "weight": 1}], "tests": {"calls": [[2, 4]]}}
    given = jsonl(
        tmp_path / "own.jsonl",
        [{"id": "a", "question": "2+2?", "domain": "code", **hidden, **structures}],
        **{role: role for role in ("domain", "steps", "variants", "rubric", "tests")},
    ).build(Resources())
    [problem] = problems = given.load()
    count = Count(id="a", content="", samples=4, correct=1)
    (tmp_path / "mined.jsonl").write_text(json.dumps(row(problem, count)))
    assert train_of(reading(tmp_path / "mined.jsonl")["data"]["train"]).build(Resources()).load() == problems


def test_counts_of_other_problems_are_not_used(rows: Any, tmp_path: Path) -> None:
    problems = rows("whole.jsonl")
    rows("hard.jsonl", ALL, train=jsonl(tmp_path / "own.jsonl", problems))
    changed = [problems[0], {**problems[1], "question": "another"}, *problems[2:]]
    with pytest.raises(DataError, match=r"source has changed .*question, reference or answer of .*\(problem 2\)"):
        rows("hard.jsonl", ALL, train=jsonl(tmp_path / "own.jsonl", changed))
    with pytest.raises(DataError, match="16 problems then, 8 now"):
        rows("hard.jsonl", ALL, train=jsonl(tmp_path / "own.jsonl", problems[:8]))


@pytest.mark.parametrize("cut", ["between batches", "within a batch", "within a line", "before the rows"])
def test_what_a_kill_leaves_is_gone_on_with(rows: Any, tmp_path: Path, cut: str) -> None:
    whole = rows("whole.jsonl")
    rows()
    counts, dataset = tmp_path / "hard.counts.jsonl", tmp_path / "hard.jsonl"
    lines = counts.read_text().splitlines(keepends=True)
    kept = {"between batches": 8, "within a batch": 10, "within a line": 9, "before the rows": 8}[cut]
    counts.write_text("".join(lines[:kept]) + ('{"id": "ch' if cut == "within a line" else ""))
    dataset.write_text("" if cut == "before the rows" else "".join(dataset.read_text().splitlines(True)[:10]))
    (tmp_path / "hard.summary.json").unlink()
    assert rows() == whole
    assert counts.read_text() == "".join(lines)
    assert json.loads((tmp_path / "hard.summary.json").read_text())["problems"] == 16


def test_another_experiment_or_file_is_refused(rows: Any, tmp_path: Path) -> None:
    rows()
    with pytest.raises(DataError, match=r"evaluation\.temperature: 1\.0 -> 0\.5"):
        rows("hard.jsonl", ALL, "evaluation.temperature=0.5")
    (tmp_path / "mine.jsonl").write_text("somebody's own\n")
    with pytest.raises(DataError, match="was not made by"):
        rows("mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "somebody's own\n"
    with pytest.raises(ConfigError, match=r"must end in \.jsonl"):
        rows("mine.csv")
    with pytest.raises(ConfigError, match="--min-rate"):
        Rates(0.5, 0.1)


def test_an_attempt_that_failed_before_it_sampled_is_no_beginning(rows: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(f"{json.dumps({**row, 'task': row['question']})}\n" for row in rows("whole.jsonl")))

    def own(**columns: str) -> Choice:
        return train_of({"name": "jsonl", "path": str(path), "columns": columns})

    with pytest.raises(DataError, match="no column 'tusk'"):
        rows("hard.jsonl", ALL, train=own(question="tusk"))
    assert len(rows("hard.jsonl", ALL, train=own(question="task"))) == 16


def test_the_histogram_counts_every_problem_once() -> None:
    counts = [Count(id=str(right), content="", samples=20, correct=right) for right in range(21)]
    assert histogram(counts) == {"0": 1, "0.0 to 0.1": 1, **{f"0.{n} to 0.{n + 1}": 2 for n in range(1, 9)}} | {
        "0.9 to 1.0": 2,
        "1": 1,
    }


def test_killed_and_started_again_through_the_command_line(tmp_path: Path) -> None:
    options = [*SMALL, "data.train.count=160", "evaluation.samples_per_prompt=16", "evaluation.k=[1,16]"]
    command = [sys.executable, "-m", "exprl", "mine", "configs/quickstart.yaml", *options, "--max-rate", "0.2"]

    def start(name: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--output", str(tmp_path / name)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    killed, counts = start("hard.jsonl"), tmp_path / "hard.counts.jsonl"
    until(lambda: counts.is_file() and counts.stat().st_size)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(read(counts)) in (64, 128)
    outputs = []
    for name in ("hard.jsonl", "straight.jsonl"):
        process = start(name)
        outputs.append(process.communicate(timeout=LONG)[0])
        assert process.returncode == 0, outputs[-1]
    assert "done before" in outputs[0]
    assert "of 160 problems kept" in outputs[0]
    assert (tmp_path / "hard.jsonl").read_text() == (tmp_path / "straight.jsonl").read_text() != ""


@pytest.mark.parametrize("engine", ["vllm", "server"])
def test_other_engines_mine_as_well(small: Any, tmp_path: Path, engine: str) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    shrunk = [item for item in SMALL if not item.startswith("rollout.batch_size")]  # which these engines do not have
    options = [*shrunk, "evaluation.samples_per_prompt=16", "evaluation.k=[1]", f"rollout.name={engine}"]
    with ExitStack() as stack:
        stack.enter_context(forked.forking(*VLLM))
        if engine == "server":
            policy = small().model.build(Resources()).load()
            server = stack.enter_context(serving(policy, tmp_path, "--max-model-len", "128"))
            options += [f"rollout.url={server.url}", "rollout.model=judge"]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "exprl", "mine", "configs/quickstart.yaml", *options),
                *("--output", str(tmp_path / "any.jsonl"), "--max-rate", "1"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    written = read(tmp_path / "any.jsonl")
    assert [row["id"] for row in written] == [p.id for p in small().data.train.build(Resources()).load()]
    assert 0 < sum(row["correct"] for row in written) < 16 * 16  # the small policy is right now and then
