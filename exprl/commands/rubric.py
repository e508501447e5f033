"""`exprl rubric`: make a rubric of every reference, once, in a file that people read and edit."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from exprl.build import Build
from exprl.component import Choice
from exprl.config.fields import choices_in
from exprl.domains import Routes, Routing
from exprl.errors import ConfigError, DataError, JudgeError, PathError, RubricError
from exprl.experiment import Experiment
from exprl.files.disk import append_text, read_text, write_text
from exprl.files.lock import LOCK, locked
from exprl.judges.rubric import RubricJudge
from exprl.judges.rubric_file import ADVICE, Entry, Key, Wanted, read_entries, wanted
from exprl.judges.rubrics import checked
from exprl.runs.preflight import check_rubrics
from exprl.terminal.console import Console, line
from exprl.terminal.phases import Phases
from exprl.types import Problem

BATCH = 64
"""Rubrics written in one call of the backend: what a killed run has to write again."""

NAMED = 10
"""Rows that a message names; all are in the file."""

By = Literal["model", "steps"]


@dataclass(frozen=True)
class Files:
    """The file of rubrics, in which a line that is there stays as it is, and its lock."""

    path: Path

    @property
    def lock(self) -> Path:
        """Held by the process that writes."""
        return self.path.with_name(f".{self.path.name}{LOCK}")

    def lines(self) -> list[tuple[Entry, str]]:
        """Each line as it is read and as it is written; what a killed run left of its last one is not there.

        Raises:
            DataError: a line is none of a rubric; nothing is overwritten.
            PathError: the file cannot be read.
        """
        if not self.path.exists():
            return []
        text = read_text(self.path, ADVICE)
        if text and not text.endswith("\n"):  # an editor's file may end so too, in a line that is whole
            whole, _, last = text.rpartition("\n")
            write_text(self.path, f"{text}\n" if _is_json(last) else f"{whole}\n" if whole else "")
            text = read_text(self.path, ADVICE)
        try:
            entries = read_entries(self.path)
        except (DataError, PathError) as error:
            raise type(error)(f"--output: {error}") from None
        return list(zip(entries, text.split("\n"), strict=False))

    def keep(self, lines: Sequence[tuple[Entry, str]]) -> None:
        """These lines alone, as they are."""
        write_text(self.path, "".join(f"{line}\n" for _, line in lines))

    def arrange(self, order: Sequence[Key]) -> None:
        """In the order of the problems, so that the same rubrics are the same file, however often it was begun."""
        place = {key: number for number, key in enumerate(order)}
        lines = self.lines()
        arranged = sorted(lines, key=lambda line: place.get(line[0].key, len(place)))
        if arranged != lines:
            self.keep(arranged)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def make_rubrics(experiment: Experiment, output: Path, by: By, *, console: Console) -> list[Entry]:
    """Make the rubrics of the training and the held-out problems that `output` does not hold yet.

    Those of a row's column `rubric` are taken over. Of the others the language model of the reward's judge `rubric`
    writes one for the reference and one for each variant; or each row's steps are its milestones. Lines that are there
    stay as they are; those without a rubric are tried again. Where rewards are chosen by domain, the problems of those
    domains are meant that such a judge grades, each by its own.

    Args:
        experiment: its data, and its reward, which must have such a judge where a model is to write.
        output: the file, made or gone on with.
        by: who makes them.
        console: where it is told what came out.

    Returns:
        The lines of these problems, in their order.

    Raises:
        ExprlError: any of its children, before anything is written; `JudgeError` where no rubric could be made.
    """
    judges = list(rubric_judges(experiment.reward, "reward"))
    if by == "model" and not judges:
        raise ConfigError(
            "reward: its judge is no 'rubric', whose model would write them. Set reward.judge.name=rubric (of the "
            "reward process or outcome), or --by steps for rubrics without a model."
        )
    check_rubrics(experiment, output, judges if by == "model" else [])
    files = Files(output)
    with locked(files.lock, f"--output: {output}"):
        lines = files.lines()
        build = Build(experiment)
        problems = problems_of(build)
        shares = shares_of(experiment.reward, problems) if judges else [Share(judge=None, problems=problems)]
        every = [one for share in shares for one in share.wanted(by)]
        check_edited([entry for entry, _ in lines], every, output)
        done = [line for line in lines if line[0].rubric is not None]
        if len(done) < len(lines):
            files.keep(done)
        kept = {entry.key for entry, _ in done}
        missing = sum(one.key not in kept for one in every)
        console.say(f"{len(every)} rubrics, {len(every) - missing} in the file before")
        tell_changed([entry for entry, _ in done], every, console)
        if missing:
            fill(build, files, shares, kept, by)
        files.arrange([one.key for one in wanted(problems)])
        found = {entry.key: entry for entry, _ in files.lines()}
    entries = [found[one.key] for one in every]
    tell(entries, output, by, [key for key, _ in judges], console)
    return entries


# ------------------------------------------------------------------ whose rubrics, and by whom


@dataclass(frozen=True, kw_only=True)
class Share:
    """Problems, and the judge that is to grade them by their rubrics; None where the reward says nothing of rubrics."""

    judge: Choice | None
    problems: Sequence[Problem]

    def wanted(self, by: By) -> list[Wanted]:
        """The rubrics that these are to have; steps are those of the reference, so that variants have none by them."""
        return [one for one in wanted(self.problems) if by == "model" or one.stands_in_column or not one.variant]


def rubric_judges(reward: Choice, key: str) -> Iterator[tuple[str, Choice]]:
    """The judges of a reward that grade by rubrics, with their keys; none reads a file, which is yet to be made."""
    for path, choice in choices_in(reward, key):
        if issubclass(choice.cls, RubricJudge):
            yield path, replace(choice, config=replace(choice.config, rubrics=None, monotone=False))


def shares_of(reward: Choice, problems: Sequence[Problem]) -> list[Share]:
    """The problems that a rubric judge grades; of those whose domain has another, or no route at all, none."""
    if issubclass(reward.cls, Routing):
        routes = Routes(reward.config.domains, reward.config.default, "reward")
        routed = [p for p in problems if routes.default is not None or p.domain in routes.domains]
        parts = routes.split([problem.domain for problem in routed])
        return [share for _, own, places in parts for share in shares_of(own, [routed[place] for place in places])]
    return [Share(judge=judge, problems=problems) for _, judge in list(rubric_judges(reward, "reward"))[:1]]


def problems_of(build: Build) -> list[Problem]:
    """The training and the held-out problems, each once.

    Raises:
        DataError: two problems with one id have other references.
    """
    problems: dict[str, Problem] = {}
    for problem in [*build.train_problems, *build.evaluation_problems]:
        if problems.setdefault(problem.id, problem).scaffold != problem.scaffold:
            raise DataError(
                f"problem {problem.id!r} is in data.train and, with another reference, answer, steps, variants, rubric "
                "or tests, in evaluation.source. Rubrics are kept by id: give both the same columns, set columns.id to "
                "one that tells them apart, or evaluation.source=null."
            )
    return list(problems.values())


def fill(build: Build, files: Files, shares: Sequence[Share], kept: Set[Key], by: By) -> None:
    """Make the rubrics that are missing, share by share, and append them batch by batch."""
    missing = [(share, [one for one in share.wanted(by) if one.key not in kept]) for share in shares]
    with (
        Phases().run("rubrics", sum(len(own) for _, own in missing), unit="rubric") as on_progress,
        ExitStack() as stack,
    ):
        for share, own in missing:
            to_write = {one.key for one in own if by == "model" and not one.stands_in_column}
            if to_write:
                stack.callback(build.engine.close)  # which a judge may share
            with writing(build, share.judge if to_write else None) as judge:
                for start in range(0, len(own), BATCH):
                    batch = own[start : start + BATCH]
                    written = [one for one in batch if one.key in to_write]
                    made = {e.key: e for e in judge.write(written, on_progress)} if judge and written else {}
                    on_progress(len(batch) - len(written))
                    append_text(files.path, "".join((made.get(one.key) or one.own()).line() for one in batch))


def check_edited(entries: Sequence[Entry], every: Sequence[Wanted], output: Path) -> None:
    """Raise `DataError`, naming the line, for a rubric in the file that no run would take; nothing is changed."""
    problems = {one.key: one.problem for one in every}
    for number, entry in enumerate(entries, start=1):
        if entry.rubric is not None and entry.key in problems:
            try:
                checked(entry.rubric, problems[entry.key])
            except RubricError as error:
                raise DataError(f"--output: {output}, line {number}, id {entry.id!r}: {error}. {ADVICE}") from None


@contextmanager
def writing(build: Build, choice: Choice | None) -> Iterator[RubricJudge | None]:
    """The judge whose model writes, ready, for as long as it does; None: nothing is to be written."""
    if choice is None:
        yield None
        return
    judge: RubricJudge = choice.build(build.resources)
    try:
        judge.prepare()
        yield judge
    finally:
        judge.close()


# ------------------------------------------------------------------ what is told


def tell_changed(kept: Sequence[Entry], every: Sequence[Wanted], console: Console) -> None:
    """Say which rubrics in the file are of references that the problems no longer have; they are left alone."""
    keys, ids = {one.key for one in every}, {one.problem.id for one in every}
    changed = [entry.id for entry in kept if entry.id in ids and entry.key not in keys]
    if changed:
        console.say(
            f"{len(changed)} rubrics in the file are of references that have changed since ({named(changed)}): they "
            "stay there and are used no more; new ones are made. Delete their lines, or copy what holds of them."
        )


def tell(entries: Sequence[Entry], output: Path, by: By, judges: Sequence[str], console: Console) -> None:
    """Say what came out, row by row where there is no rubric, and how to judge by the file.

    `judges` are the keys of the judges that grade by rubrics.

    Raises:
        JudgeError: there is no rubric at all.
    """
    failed = [entry for entry in entries if entry.rubric is None]
    for entry in failed[:NAMED]:
        console.say(f"no rubric for {line(entry.id)}: {entry.failed}")
    if len(failed) > NAMED:
        console.say(f"and for {len(failed) - NAMED} more, see 'failed' in the file")
    if len(failed) == len(entries):
        advice = (
            _stronger(judges)
            if by == "model"
            else "Set data.train.columns.steps to the column with the intermediate results, or let a model write: "
            "leave --by away."
        )
        raise JudgeError(f"none of {len(entries)} rubrics could be made; {output} says why, row by row. {advice}")
    made = len(entries) - len(failed)
    console.say(f"{made} of {len(entries)} rubrics: {output}")
    if failed:
        again = f"start the command again. {_stronger(judges)}" if by == "model" else "start the command again."
        console.say(f'Fill in the others there ("milestones" in place of "failed"), or {again}')
    options = [f"{key}.rubrics={output}" for key in judges] or [
        "reward.judge.name=rubric",
        f"reward.judge.rubrics={output}",
    ]
    console.say(f"To judge by them: {shlex.join(options)}")


def _stronger(judges: Sequence[str]) -> str:
    """What may help where a model could not write, by the full keys of these judges' options."""
    model, longer, constrained = (
        " and ".join(f"{key}.{option}" for key in judges) for option in ("model", "max_new_tokens", "constrained=true")
    )
    return f"What may help: a stronger model ({model}), more tokens ({longer}), or {constrained} on a backend that can."


def named(ids: Sequence[str]) -> str:
    """The first few of them."""
    more = ", …" if len(ids) > NAMED else ""
    return ", ".join(map(line, ids[:NAMED])) + more
