"""What was measured of facts, kept as it comes, so that nothing is measured twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from exprl.data.canaries import Canary
from exprl.errors import DataError
from exprl.files.disk import append_line
from exprl.files.lines import drop_half_line, read_lines
from exprl.leaks.exposure import Array, exposure, rank
from exprl.leaks.regraded import Regraded
from exprl.leaks.values import CONTEXTS, Context

Policy = Literal["initial", "trained"]
ADVICE = "Delete that line, or the file, to have it measured anew."
POLICIES: tuple[Policy, ...] = ("initial", "trained")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One fact, in one context, as one policy of a run has it.

    Attributes:
        run: which run and checkpoint, and what its facts are.
        policy: the run's initial policy, or the one that it trained.
        context: what stands before the secret.
        problem_id: whose reference it is in.
        values: how many the secret could be.
        rank: of the secret among them.
        control_rank: of a value that was planted nowhere.
        logprob: of the secret, in nats.
    """

    run: str
    policy: Policy
    context: Context
    problem_id: str
    values: int
    rank: float
    control_rank: float
    logprob: float

    @classmethod
    def of(cls, logprobs: Array, canary: Canary, *, run: str, policy: Policy, context: Context) -> Measured:
        """From the log-probs of all values; reveals which was planted, that its rank can be told."""
        secret = canary.secret.reveal()
        return cls(
            run=run,
            policy=policy,
            context=context,
            problem_id=canary.problem.id,
            values=canary.values,
            rank=rank(logprobs, secret),
            control_rank=rank(logprobs, canary.control),
            logprob=float(logprobs[secret]),
        )

    @property
    def exposure(self) -> float:
        """Of the secret, in bits."""
        return exposure(self.rank, self.values)

    @property
    def control(self) -> float:
        """Exposure of the value that was planted nowhere."""
        return exposure(self.control_rank, self.values)

    @property
    def key(self) -> tuple[str, ...]:
        """What is measured once."""
        return self.run, self.policy, self.context, self.problem_id


class Log:
    """A file with a line a measurement; it never says which value was planted.

    Args:
        path: the file; it need not be there.

    Raises:
        DataError: a line holds something else: it is damaged, or another version of exprl wrote it.
        PathError: the file cannot be read, or a line of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[tuple[str, ...], Measured] = {}
        for where, node in lines_of(path):
            with said_of(where):
                one = measured_from(node)
            self.found[one.key] = one

    def add(self, measured: Sequence[Measured]) -> None:
        """Keep what was measured of a fact; raises `PathError`."""
        for one in measured:
            append_line(self.path, asdict(one))
            self.found[one.key] = one


class Grades:
    """A file with a line a step that was graded again; see `Log`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[tuple[str, int], Regraded] = {}
        for where, node in lines_of(path):
            with said_of(where):
                step, regraded = regraded_from(node)
            self.found[step] = regraded

    def add(self, run: str, step: int, regraded: Regraded) -> None:
        """Keep what came out of a step; raises `PathError`."""
        append_line(self.path, {"run": run, "step": step, **asdict(regraded)})
        self.found[run, step] = regraded


def measured_from(node: Mapping[str, Any]) -> Measured:
    """What a line says; raises `TypeError` or `ValueError` where it says nothing that can have been measured."""
    one = Measured(**node)
    _require(all(isinstance(text, str) for text in (one.run, one.problem_id)), "run, problem_id", "text")
    _require(one.policy in POLICIES, "policy", " or ".join(POLICIES))
    _require(one.context in CONTEXTS, "context", " or ".join(CONTEXTS))
    _require(type(one.values) is int and one.values > 1, "values", "a count from 2 on")
    for name in ("rank", "control_rank"):
        _require(_is_number(getattr(one, name)) and 1 <= getattr(one, name) <= one.values, name, f"1 to {one.values}")
    # JSON has no infinity: a log-prob of minus infinity is written as null
    _require(one.logprob is None or _is_number(one.logprob), "logprob", "a number")
    return one


def regraded_from(node: Mapping[str, Any]) -> tuple[tuple[str, int], Regraded]:
    """The run and step of a line, and what it says; raises as `measured_from` does."""
    rest = dict(node)
    run, step = rest.pop("run", None), rest.pop("step", None)
    one = Regraded(**rest)
    _require(isinstance(run, str), "run", "text")
    _require(type(step) is int, "step", "a number of steps")
    for name in ("compared", "moved"):
        counts = getattr(one, name)
        _require(isinstance(counts, dict) and all(type(n) is int and n >= 0 for n in counts.values()), name, "counts")
    _require(one.compared.keys() == one.moved.keys(), "moved", "counts of the same problems as compared")
    _require(all(one.moved[key] <= count for key, count in one.compared.items()), "moved", "at most compared")
    return (run, step), one


def lines_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The whole lines of a file, each with where it is; none where the file is not there. Raises `PathError`."""
    if not path.exists():
        return
    drop_half_line(path)
    yield from ((f"{path}, line {number}", node) for number, node in enumerate(read_lines(path, ADVICE), start=1))


@contextmanager
def said_of(where: str) -> Iterator[None]:
    """Inside, what is wrong with a line is a `DataError`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}, is damaged or of another version of exprl ({error}). {ADVICE}") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(right: bool, name: str, allowed: str) -> None:
    if not right:
        raise ValueError(f"{name}: must be {allowed}")
