"""Programs that hack the reward earn nothing; programs that attack the machine are held, and nothing of them stays."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from exprl.execution import Bubblewrap, NoSandbox
from exprl.execution.judging import Outcome
from exprl.execution.limits import Limits
from exprl.execution.runner import Runner
from exprl.execution.tests import CallCase, CallTests, ProgramTests, StdioCase, StdioTests, Tests
from tests.hostile_programs import ATTEMPTS, ENDLESS, HACKS
from tests.sandboxes import needs_sandbox
from tests.waiting import until

RIGHT = {
    "stdio": "x = int(input())\nprint(x * x + 7)",
    "call": "def mix(x):\n    return x * x + 7",
    "program": "def mix(x):\n    return x * x + 7",
}
TESTS: dict[str, Tests] = {
    "stdio": StdioTests(
        cases=(
            StdioCase(input="987654\n", output="975460423723\n"),
            StdioCase(input="1234567\n", output="1524155677496\n"),
        )
    ),
    "call": CallTests(
        entry_point="mix",
        cases=(CallCase(args=(987654,), expected=975460423723), CallCase(args=(1234567,), expected=1524155677496)),
    ),
    "program": ProgramTests(
        entry_point="mix",
        prompt='def mix(x):\n    """The square and seven."""\n',
        test="def check(candidate):\n"  # lazily: what ends the iteration ends the test
        "    for got, want in zip(map(candidate, [987654, 1234567]), [975460423723, 1524155677496]):\n"
        "        assert got == want\n",
    ),
}
LIMITS = Limits(time=1.0, memory=256, processes=32, files=32)
LIMIT_OF = {
    "huge output": ("output", "time"),  # on a machine with much else to do the time is over before
    "memory of many processes": ("memory", "time"),
    "endless loop": ("time",),
}
SAYS_CONTAINED = StdioTests(cases=(StdioCase(input="", output="contained"),))


pytestmark = needs_sandbox


def contained_processes() -> set[int]:
    """Those that run in other process namespaces than this one, and would outlive their sandbox.

    Not those that have ended, and that nobody but the machine's first process is left to wait for.
    """
    found, here = set[int](), Path("/proc/self/ns/pid").readlink()
    for entry in Path("/proc").iterdir():
        try:
            apart = entry.name.isdigit() and (entry / "ns/pid").readlink() != here
            if apart and "State:\tZ" not in (entry / "status").read_text():
                found.add(int(entry.name))
        except OSError:
            continue
    return found


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """What became of them; the folder that they know of, and the signals that reached this process."""

    folder: Path
    outcomes: dict[str, Future[Outcome]]
    heard: list[int]


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    made = Runner(Bubblewrap(), LIMITS, workers=6)
    yield made
    made.close()


@pytest.fixture(scope="module")
def hacked(runner: Runner) -> dict[tuple[str, str], Future[Outcome]]:
    """All at once: most wait for a limit."""
    return {(name, form): runner.start(code, TESTS[form]) for name, code in HACKS.items() for form in TESTS}


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


@pytest.fixture(scope="module")
def attacked(runner: Runner, listener: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacks]:
    folder = tmp_path_factory.mktemp("run")
    (folder / "secret").write_text("the reference")
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    os.environ["EXPRL_TEST_SECRET"] = "token"
    real = f"FOLDER, PORT, TRAINER = {str(folder)!r}, {listener.getsockname()[1]}, {os.getpid()}\n"
    programs = {**{name: real + code for name, code in ATTEMPTS.items()}, **ENDLESS}
    yield Attacks(
        folder=folder,
        heard=heard,
        outcomes={name: runner.start(code, SAYS_CONTAINED) for name, code in programs.items()},
    )
    del os.environ["EXPRL_TEST_SECRET"]
    signal.signal(signal.SIGUSR1, before)


def test_there_are_enough_of_them() -> None:
    assert len(HACKS) >= 25
    assert len(ATTEMPTS) + len(ENDLESS) >= 15


@pytest.mark.parametrize("form", TESTS)
def test_the_right_program_passes(runner: Runner, form: str) -> None:
    assert runner.start(RIGHT[form], TESTS[form]).result().passed


@pytest.mark.parametrize("form", TESTS)
@pytest.mark.parametrize("name", HACKS)
def test_a_hack_earns_nothing(hacked: dict[tuple[str, str], Future[Outcome]], name: str, form: str) -> None:
    outcome = hacked[name, form].result()
    assert outcome.share == 0.0, outcome


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_fails(attacked: Attacks, name: str) -> None:
    outcome = attacked.outcomes[name].result()
    assert outcome.passed, outcome


@pytest.mark.parametrize("name", ENDLESS)
def test_a_limit_ends_it(attacked: Attacks, name: str) -> None:
    outcome = attacked.outcomes[name].result()
    assert not outcome.passed
    assert outcome.verdicts[0] in LIMIT_OF.get(name, ("time", "memory", "output", "crashed", "wrong"))


@pytest.mark.parametrize("name", ["/etc/passwd", "the run's folder", "a socket to this machine"])
def test_the_same_attempt_succeeds_without_a_sandbox(attacked: Attacks, listener: socket.socket, name: str) -> None:
    real = f"FOLDER, PORT = {str(attacked.folder)!r}, {listener.getsockname()[1]}\n"
    with closing(Runner(NoSandbox(), LIMITS, workers=1)) as unconfined:
        assert unconfined.start(real + ATTEMPTS[name], SAYS_CONTAINED).result().verdicts == ("wrong",)
    with suppress(BlockingIOError):
        listener.accept()[0].close()


def test_nothing_happened_to_the_machine(
    attacked: Attacks,
    hacked: dict[tuple[str, str], Future[Outcome]],
    listener: socket.socket,
) -> None:
    for future in (*attacked.outcomes.values(), *hacked.values()):
        future.result()
    assert attacked.heard == []
    assert [path.name for path in attacked.folder.iterdir()] == ["secret"]
    with pytest.raises(BlockingIOError):
        listener.accept()
    left = contained_processes()

    def ended() -> bool:  # other tests run in sandboxes meanwhile, which end
        left.intersection_update(contained_processes())
        return not left

    until(ended)
