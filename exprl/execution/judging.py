"""What a program is worth by its tests, one form at a time; what is compared is compared here, outside of sandboxes."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from exprl.errors import ExecutionError
from exprl.execution.compare import same_output, same_value
from exprl.execution.files import Pipe
from exprl.execution.inside import values
from exprl.execution.limits import Limits
from exprl.execution.process import Contained, LimitError, cannot_start
from exprl.execution.sandboxes import Sandbox
from exprl.execution.tests import CallCase, CallTests, ProgramTests, StdioCase, StdioTests, Tests

Verdict = Literal["passed", "wrong", "crashed", "undefined", "time", "memory", "output", "not run"]
"""Of one test. `crashed`: the program ended by an error, or without an answer; `undefined`: it has no function of the
name that is called; time, memory and output are limits."""
_MEANING: Mapping[Verdict, str] = {
    "undefined": " (the program that was read in the response does not define the function)",
    "not run": " (no program in the response)",
}
"""Of the first verdict that is not `passed`, what it does not say itself."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The verdicts of a program's tests, one each, in order."""

    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether all tests passed; of no tests none did."""
        return bool(self.verdicts) and all(verdict == "passed" for verdict in self.verdicts)

    @property
    def share(self) -> float:
        """Of the tests, how many passed."""
        return self.verdicts.count("passed") / len(self.verdicts) if self.verdicts else 0.0

    def __str__(self) -> str:
        passed, count = self.verdicts.count("passed"), len(self.verdicts)
        first = next((number for number, verdict in enumerate(self.verdicts) if verdict != "passed"), None)
        said = f"{passed} of {count} test{'' if count == 1 else 's'} passed"
        if first is None:
            return said
        return f"{said}; test {first + 1}: {self.verdicts[first]}{_MEANING.get(self.verdicts[first], '')}"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how programs are run: the sandbox, its limits unless tests state theirs, and who may stop it all."""

    sandbox: Sandbox
    limits: Limits
    stopping: threading.Event

    def contained(self, role: Any, program: bytes, tests: Tests, **more: Any) -> Contained:
        """A process within it."""
        return Contained(self.sandbox, role, program, self.limits.of(tests), stopping=self.stopping, **more)


def judge(program: str | None, tests: Tests, bench: Bench, *, every: bool = True) -> Outcome:
    """Run a program's tests: each of them, or until the first that does not pass.

    Raises:
        ExecutionError: a sandbox cannot be started, or the test program is at fault: nothing is known of the program.
        StoppedError: `bench.stopping` was set.
    """
    if program is None:
        return _outcome([], len(tests))
    try:
        source = program.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: no Python program
        return _outcome(["crashed"], len(tests))
    found: list[Verdict] = []
    try:
        with closing(_verdicts(source, tests, bench)) as verdicts:
            for verdict in verdicts:
                found.append(verdict)
                if not every and verdict != "passed":
                    break
    except OSError as error:  # a pipe that the system has no room for
        raise cannot_start(error) from error
    return _outcome(found, len(tests))


def _outcome(found: list[Verdict], count: int) -> Outcome:
    missing: list[Verdict] = ["not run"]
    return Outcome(verdicts=(*found, *missing * (count - len(found))))


def _verdicts(source: bytes, tests: Tests, bench: Bench) -> Generator[Verdict, None, None]:
    if isinstance(tests, StdioTests):
        for case in tests.cases:
            yield _stdio(source, case, tests, bench)
    elif isinstance(tests, CallTests):
        yield from _calls(source, tests, bench)
    elif isinstance(tests, ProgramTests):
        yield _program(source, tests, bench)


# ------------------------------------------------------------------ standard input and output


def _stdio(source: bytes, case: StdioCase, tests: Tests, bench: Bench) -> Verdict:
    """One run; that it prints what is wanted is not enough where it then ends by an error."""
    with bench.contained("script", source, tests, stdin=case.input.encode("utf-8", "replace")) as process:
        process.wait_ready()
        try:
            printed = process.read_all()
            status = process.ended()
        except LimitError as error:
            return error.limit
        if status != 0:
            return "time" if status in _OUT_OF_CPU else "crashed"
        return "passed" if same_output(printed.decode("utf-8", "replace"), case.output) else "wrong"


_OUT_OF_CPU = (128 + 9, 128 + 24, -9, -24)
"""Exit statuses of SIGKILL and SIGXCPU: what Linux sends at the limit of CPU time, whatever else may send it."""


# ------------------------------------------------------------------ calls


def _calls(source: bytes, tests: CallTests, bench: Bench) -> Generator[Verdict, None, None]:
    """One verdict a call, in one process as long as it lasts; after one that was lost the next call has a new one.

    A program that cannot even be loaded is not tried again.
    """
    left = list(tests.cases)
    while left:
        with Pipe() as requests, Pipe() as replies:
            process = _serve(source, tests, bench, requests, replies, runs=len(left))
            with process:
                process.wait_ready()
                verdict = _loaded(process, replies)
                if verdict is not None:
                    yield from [verdict] * len(left)
                    return
                lasts = True
                while left and lasts:
                    verdict, lasts = _call(process, requests, replies, left.pop(0))
                    yield verdict


def _serve(
    source: bytes, tests: CallTests | ProgramTests, bench: Bench, requests: Pipe, replies: Pipe, *, runs: int
) -> Contained:
    """The program in a process that answers calls; only it holds its ends of the pipes then."""
    process = bench.contained(
        "serve",
        source,
        tests,
        runs=runs,
        descriptors={"requests": requests.reads.fileno(), "replies": replies.writes.fileno()},
        options={"entry_point": tests.entry_point},
    )
    requests.reads.close()
    replies.writes.close()
    return process


def _loaded(process: Contained, replies: Pipe) -> Verdict | None:
    """None where the program is ready to be called, else why it never will be."""
    try:
        line = process.read(replies.reads.fileno(), process.limits.output + 1, until=b"\n")
        told = values.load(line)
        return None if "loaded" in told else "undefined" if "undefined" in told else "crashed"
    except LimitError as error:
        return error.limit
    except (ValueError, RecursionError):
        return "crashed"


def _call(process: Contained, requests: Pipe, replies: Pipe, case: CallCase) -> tuple[Verdict, bool]:
    """The verdict, and whether the process is good for more."""
    process.renew()
    try:
        asked = process.write(requests.writes, values.dump({"args": list(case.args), "kwargs": dict(case.kwargs)}))
        line = process.read(replies.reads.fileno(), process.limits.output + 1, until=b"\n") if asked else b""
    except LimitError as error:
        return error.limit, False
    try:
        reply = values.load(line)
        if "value" not in reply:
            return "crashed", True
        return ("passed" if same_value(reply["value"], case.expected) else "wrong"), True
    except (ValueError, RecursionError):
        return "crashed", False


# ------------------------------------------------------------------ test programs


def _program(source: bytes, tests: ProgramTests, bench: Bench) -> Verdict:
    """A test program in one sandbox, the candidate in another; two pipes of plain values between them.

    The verdict comes from the first, in which no line of the candidate ever runs, and only after the last of its own.
    """
    test = json.dumps({"entry_point": tests.entry_point, "prompt": tests.prompt, "test": tests.test}).encode()
    with Pipe() as requests, Pipe() as replies, Pipe() as verdict:
        ends = {"requests": requests.writes, "replies": replies.reads, "verdict": verdict.writes}
        descriptors = {name: end.fileno() for name, end in ends.items()}
        with (
            bench.contained("check", test, tests, descriptors=descriptors) as checking,
            _serve(source, tests, bench, requests, replies, runs=1) as candidate,
        ):
            for end in ends.values():
                end.close()
            checking.wait_ready()
            candidate.wait_ready()
            checking.renew()
            try:
                line = checking.read(verdict.reads.fileno(), checking.limits.output + 1, until=b"\n", beside=candidate)
            except LimitError as error:
                return error.limit
        return _verdict(line, tests)


def _verdict(line: bytes, tests: ProgramTests) -> Verdict:
    if not line.endswith(b"\n"):
        return "crashed"  # the test program did not come to its end
    told = values.load(line)
    if "broken" in told:
        raise ExecutionError(
            f"the test program for {tests.entry_point!r} is at fault, not what it tests: {told['broken']}. Mend it, "
            "or leave the row out. If it needs packages, set sandbox.packages=true."
        )
    if told.get("passed") is True:
        return "passed"
    return "undefined" if told.get("undefined") is True else "wrong"
