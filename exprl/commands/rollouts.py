"""`exprl rollouts`: a look at the rollouts that are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from exprl.errors import ConfigError, DataError, did_you_mean
from exprl.rollouts.showing import print_sample, records, samples
from exprl.rollouts.store import RolloutStore, load_rollouts
from exprl.terminal.console import Console, write_document


def show(run: Path, *, steps: list[int], problem: str | None, count: int | None, as_json: bool) -> None:
    """Print rollouts, a table of segments for each or a line of JSON.

    Args:
        run: a run, or a folder that `exprl judge` wrote.
        steps: which; empty: the last one, or all of them as JSON.
        problem: the id of the problem they must answer; None: any.
        count: how many at most, of as many problems as there are; None: one, or all as JSON.
        as_json: lines of JSON, without token ids and log-probs.

    Raises:
        ConfigError: a step has no rollouts, none of the steps any of the problem, or `count` is none.
        DataError: there are none at all, or a file is damaged.
    """
    if count is not None and count < 1:
        raise ConfigError(f"--count: must be at least 1, but got {count}.")
    store = load_rollouts(run)
    chosen = steps or (list(store) if as_json else [max(store)])
    if missing := sorted(set(chosen) - set(store)):
        raise ConfigError(
            f"--step: {missing[0]} has no rollouts in {store.folder}. There are those of {_in_words(list(store))}."
        )
    if problem is not None:
        _check_problem(store, chosen, problem)
    if not any(map(store.asked, chosen)):
        raise DataError(f"{store.folder}: the files of {_in_words(chosen)} are whole, but hold no rollouts.")
    found = _records(store, chosen, problem, count if count is not None or as_json else 1)
    console = Console()
    for record in found:
        if as_json:
            write_document(json.dumps(record) + "\n")
        else:
            print_sample(console, record)


def _check_problem(store: RolloutStore, steps: list[int], problem: str) -> None:
    """Raise `ConfigError` where no step has rollouts to it, naming one that has, or the problems that there are."""

    def has(step: int) -> bool:
        return any(one.problem_id == problem for one in store.asked(step))

    if any(map(has, steps)):
        return
    where = f"step {steps[0]}" if len(steps) == 1 else "these steps"
    told = f"--problem: {problem!r} has no rollouts in {where} of {store.folder}."
    if elsewhere := next(filter(has, store), None):
        raise ConfigError(f"{told} It has in step {elsewhere}: --step {elsewhere}.")
    known = {one.problem_id for step in steps for one in store.asked(step)}
    raise ConfigError(f"{told} {did_you_mean(problem, known)}")


def _records(store: RolloutStore, steps: list[int], problem: str | None, count: int | None) -> Iterator[dict[str, Any]]:
    """All as they are stored; of `count` those that a run prints."""
    chosen = ((step, [g for g in store[step] if problem in (None, g.problem_id)]) for step in steps)
    if count is None:
        return (record for step, groups in chosen for group in groups for record in records(group, step))
    return islice((record for step, groups in chosen for record in samples(groups, step, count)), count)


def _in_words(steps: Sequence[int]) -> str:
    """Where a part of a run was not kept, the first and the last say the most."""
    return f"steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"step {steps[0]}"
