"""`exprl mine`: sample every training problem and keep those a model solves rarely, as a data set."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from exprl import config as configuration
from exprl.build import Build
from exprl.data.fingerprint import fingerprint, first_difference
from exprl.data.jsonl import JsonLinesSource
from exprl.data.rows import MINED_COLUMNS
from exprl.engines.base import generated
from exprl.errors import DataError
from exprl.evaluation.rates import Count, Rates
from exprl.experiment import Experiment, LeakConfig
from exprl.files.disk import append_line, append_text, write_json, write_text
from exprl.files.lines import drop_half_line, read_lines
from exprl.files.lock import LOCK, locked
from exprl.runs.directory import differences, in_words, saved_config
from exprl.runs.preflight import check_mining
from exprl.seeding import derive_seed
from exprl.terminal.console import Console
from exprl.terminal.phases import Phases
from exprl.terminal.progress import OnProgress
from exprl.terminal.wording import counted
from exprl.types import Problem

BATCH = 64
"""Problems sampled in one call of the engine; what is sampled depends on it, so it is no option."""

BINS = 10


@dataclass(frozen=True)
class Files:
    """What mining leaves: the data set, and beside it the counts of all problems, the options and a summary."""

    dataset: Path

    @property
    def counts(self) -> Path:
        """One line a finished problem, kept or not."""
        return self.dataset.with_suffix(".counts.jsonl")

    @property
    def config(self) -> Path:
        """The resolved experiment."""
        return self.dataset.with_suffix(".config.yaml")

    @property
    def summary(self) -> Path:
        """The histogram of solve rates."""
        return self.dataset.with_suffix(".summary.json")

    @property
    def lock(self) -> Path:
        """Held by the process that mines."""
        return self.dataset.with_name(f".{self.dataset.name}{LOCK}")

    def claim(self, experiment: Experiment) -> None:
        """Begin, or go on with the same experiment; what ended before its first samples has not begun.

        Raises:
            DataError: the file is there without the counts it was made from, or they are of another experiment.
        """
        text = configuration.to_yaml(experiment)
        if not _has_text(self.counts):
            if _has_text(self.dataset):
                raise DataError(
                    f"--output: {self.dataset} exists and was not made by `exprl mine`, or its counts are gone. "
                    "Choose another."
                )
            write_text(self.config, text)
            return
        found = differences(saved_config(self.config), text, configuration.free_keys(experiment))
        if found:
            raise DataError(
                f"--output: {self.dataset} was begun with another experiment ({in_words(found)}). Choose another file."
            )

    def finished(self) -> list[Count]:
        """The problems done so far; the line that a killed run did not finish is left out."""
        if not self.counts.is_file():
            return []
        drop_half_line(self.counts)
        try:
            return [Count(**line) for line in read_lines(self.counts, "Delete it to count anew.")]
        except TypeError as error:
            raise DataError(
                f"--output: {self.counts} is of another version of exprl ({error}). Choose another."
            ) from error


def _has_text(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def mine(experiment: Experiment, output: Path, rates: Rates, *, console: Console) -> list[Count]:
    """Sample `data.train`, `evaluation.samples_per_prompt` times a problem, and write the problems within `rates`.

    Problems are done in batches, and a batch that is done stays done: started again, the run goes on after it, and
    writes what it would have written. Other rates over the same samples need no new sampling.

    Returns:
        The count of every problem, in order.

    Raises:
        ExprlError: any of its children, before anything is sampled; also where another process writes the same file.
    """
    check_mining(experiment, output)
    files = Files(output)
    with locked(files.lock, f"--output: {output}"):
        return _mine(experiment, files, rates, console)


def _mine(experiment: Experiment, files: Files, rates: Rates, console: Console) -> list[Count]:
    files.claim(experiment)
    build = Build(replace(experiment, leak=LeakConfig()))  # a data set has the references as its source gave them
    problems = build.train_problems
    build.check_answers(problems, "data.train")
    build.check_lengths(problems, build.evaluation_sampling.max_new_tokens)
    counts = files.finished()
    check_same(problems, counts)
    counts = counts[: len(counts) // BATCH * BATCH] if len(counts) < len(problems) else counts
    write_text(files.counts, "".join(f"{json.dumps(vars(count))}\n" for count in counts))
    write_rows(files.dataset, problems, counts, rates)
    if len(counts) < len(problems):
        console.say(f"{counted(len(problems), 'problem')}, {len(counts)} done before")
        counts = sample(build, problems, counts, files, rates)
    summary = summarize(counts, rates)
    write_json(files.summary, summary)
    console.print(histogram_table(counts))
    console.say(f"{summary['kept']} of {counted(summary['problems'], 'problem')} kept: {files.dataset}")
    if summary["kept"]:
        tell_reading(files.dataset, console)
    return counts


def check_same(problems: Sequence[Problem], counts: Sequence[Count]) -> None:
    """Raise `DataError` where the source has other problems than were counted."""
    counted = {count.id: count.content for count in counts}
    found = first_difference(counted, fingerprint(problems[: len(counts)]))
    if found:
        raise DataError(
            f"data.train: the source has changed since its problems were counted ({found}). Choose another --output."
        )


def sample(build: Build, problems: Sequence[Problem], counts: list[Count], files: Files, rates: Rates) -> list[Count]:
    """Do the batches that are left; returns all counts."""
    per_problem, phases = build.evaluation_sampling.n, Phases()
    try:
        with phases.run("mining", len(problems) * per_problem) as on_progress:
            on_progress(len(counts) * per_problem)
            for start in range(len(counts), len(problems), BATCH):
                batch = problems[start : start + BATCH]
                done = count_batch(build, batch, start, on_progress)
                append_text(files.counts, "".join(f"{json.dumps(vars(count))}\n" for count in done))
                append_rows(files.dataset, batch, done, rates)
                counts = [*counts, *done]
    finally:
        build.engine.close()
    return counts


def count_batch(build: Build, batch: Sequence[Problem], start: int, on_progress: OnProgress) -> list[Count]:
    """Sample and verify some problems; their samples depend on their place in the source alone."""
    sampling = build.evaluation_sampling
    seeded = replace(sampling, seed=derive_seed(sampling.seed, "mine", start))
    prompts = [build.prompts.build(problem.question, problem.domain) for problem in batch]
    indices, responses = list[int](), list[str]()
    for index, rollout in generated(build.engine, prompts, seeded):
        indices.append(index)
        responses.append(rollout.reply)
        on_progress(1)
    verdicts = build.verifier.verdicts([batch[index] for index in indices], responses)
    correct = Counter(index for index, right in zip(indices, verdicts, strict=True) if right)
    contents = fingerprint(batch)
    return [
        Count(id=p.id, content=contents[p.id], samples=sampling.n, correct=correct[index])
        for index, p in enumerate(batch)
    ]


# ------------------------------------------------------------------ the data set


def row(problem: Problem, count: Count) -> dict[str, Any]:
    """A problem as the source `jsonl` reads it; a column for what the problem does not have is left out.

    The reference is revealed into a file, which is a data set for later runs; nothing here makes a prompt.
    """
    scaffold = problem.scaffold
    columns = {
        "id": problem.id,
        "question": problem.question.text,
        "reference": scaffold.reference.reveal() if scaffold.reference is not None else None,
        "answer": scaffold.answer.reveal() if scaffold.answer is not None else None,
        "steps": list(scaffold.steps.reveal()) if scaffold.steps is not None else None,
        "variants": list(scaffold.variants.reveal()) if scaffold.variants is not None else None,
        "rubric": json.loads(scaffold.rubric.reveal()) if scaffold.rubric is not None else None,
        "tests": json.loads(scaffold.tests.reveal()) if scaffold.tests is not None else None,
        "domain": problem.domain,
    }
    counted = {"samples": count.samples, "correct": count.correct, "solve_rate": count.rate}
    return {**{name: value for name, value in columns.items() if value is not None}, **counted}


def kept_rows(problems: Sequence[Problem], counts: Sequence[Count], rates: Rates) -> Iterator[dict[str, Any]]:
    """The rows within `rates` of the problems counted so far."""
    for problem, count in zip(problems, counts, strict=False):
        if rates.keep(count):
            yield row(problem, count)


def write_rows(path: Path, problems: Sequence[Problem], counts: Sequence[Count], rates: Rates) -> None:
    """The whole data set so far."""
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in kept_rows(problems, counts, rates)))


def append_rows(path: Path, problems: Sequence[Problem], counts: Sequence[Count], rates: Rates) -> None:
    """The rows of a batch; one lost by a kill is written when the run goes on."""
    for line in kept_rows(problems, counts, rates):
        append_line(path, line)


def reading(path: Path) -> dict[str, Any]:
    """The section of a config that reads the data set back, whole: no option of another source is left to inherit."""
    source = JsonLinesSource.Config(path=str(path), columns=MINED_COLUMNS)
    return {"data": {"train": {"name": JsonLinesSource.registered_name, **configuration.to_node(source)}}}


def tell_reading(path: Path, console: Console) -> None:
    """Say how to train on the data set, as YAML that can be pasted and as one override for a command line."""
    section = configuration.to_yaml(reading(path))
    inline = json.dumps(yaml.safe_load(section)["data"]["train"], ensure_ascii=False)
    console.say(f"To train on them, in a YAML file:\n\n{section}")
    console.say(f"or on the command line:\n\n{shlex.quote(f'data.train={inline}')}\n")


# ------------------------------------------------------------------ the summary


def histogram(counts: Sequence[Count]) -> dict[str, int]:
    """Problems by solve rate: never, in ten equal parts, and always.

    >>> histogram([Count(id="a", content="", samples=4, correct=1)])["0.2 to 0.3"]
    1
    """
    inner = {f"{low / BINS:.1f} to {(low + 1) / BINS:.1f}": 0 for low in range(BINS)}
    bins = {"0": 0, **inner, "1": 0}
    names = list(inner)
    for count in counts:
        if count.correct in (0, count.samples):
            bins["0" if count.correct == 0 else "1"] += 1
        else:
            bins[names[count.correct * BINS // count.samples]] += 1
    return bins


def summarize(counts: Sequence[Count], rates: Rates) -> dict[str, Any]:
    """What the summary's file holds."""
    return {
        "problems": len(counts),
        "kept": sum(rates.keep(count) for count in counts),
        "rates": [rates.low, rates.high],
        "samples_per_problem": counts[0].samples,
        "mean_rate": sum(count.rate for count in counts) / len(counts),
        "histogram": histogram(counts),
    }


def histogram_table(counts: Sequence[Count]) -> Table:
    """The histogram for the console."""
    table = Table(title=f"solve rates in {counted(counts[0].samples, 'sample')}", title_justify="left")
    for column in ("rate", "problems", ""):
        table.add_column(column, justify="right" if column else "left")
    for name, number in histogram(counts).items():
        table.add_row(name, str(number), "█" * round(40 * number / len(counts)))
    return table
