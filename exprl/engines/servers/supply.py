"""Where the servers of a run come from: given by their URLs, or processes that it starts itself."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exprl.engines.servers.command import LOOPBACK
from exprl.engines.servers.fleet import Address
from exprl.engines.servers.process import ServerProcess, free_port
from exprl.errors import EngineError
from exprl.terminal.wording import counted
from exprl.waiting import Wait

LOOK = 0.25
"""Seconds between two looks at servers that are waited for."""


class Supply(ABC):
    """The servers of a run, on the rank that looks after them.

    Args:
        answers: whether a server is there and answers, within some seconds.
    """

    def __init__(self, answers: Callable[[Address], bool]) -> None:
        self._answers = answers

    @abstractmethod
    def start(self) -> list[Address]:
        """All servers, once each of them answers; raises `EngineError` where one does not."""

    @abstractmethod
    def lost(self, address: Address) -> str:
        """React to the loss of a server; returns what is known and done about it, for whoever reads along."""

    @abstractmethod
    def present(self) -> list[Address]:
        """Those that answer now.

        Where none does, but one is being started, it is waited for within its limit.
        """

    @property
    def starting(self) -> bool:
        """Whether a server that is lost is being started again, or will be; never, unless a supply says so."""
        return False

    @property
    @abstractmethod
    def remedy(self) -> str:
        """What whoever reads that no server is left may do."""

    def advice(self) -> str:
        """What whoever reads that a server cannot follow the policy may do; nothing, unless a supply says so."""
        return ""

    def stop(self) -> None:
        """End what was started; nothing, unless a supply says so."""
        return


class GivenServers(Supply):
    """Servers that somebody else runs.

    Args:
        urls: of each.
        answers: see `Supply`.
        command: how one is started, for messages.
    """

    def __init__(self, urls: Sequence[str], answers: Callable[[Address], bool], command: str) -> None:
        super().__init__(answers)
        self._addresses = [Address(number=number, url=url) for number, url in enumerate(urls)]
        self._command = command

    def start(self) -> list[Address]:
        """See `Supply`."""
        present = self.present()
        if missing := [str(one) for one in self._addresses if one not in present]:
            raise EngineError(f"rollout.urls: no answer from {', '.join(missing)}.{self.advice()}")
        return present

    def advice(self) -> str:
        """The command."""
        return f" Start each there with\n    {self._command}\nor leave it out."

    @property
    def remedy(self) -> str:
        """See `Supply`."""
        return "See that they run, then go on with --resume."

    def lost(self, address: Address) -> str:
        """See `Supply`."""
        del address
        return "it is left out until it answers again before an update of the weights"

    def present(self) -> list[Address]:
        """See `Supply`."""
        return [address for address in self._addresses if self._answers(address)]


@dataclass
class _Place:
    """One of the servers that the run starts: its process at the moment, and how many it has had."""

    number: int
    address: Address | None = None
    process: ServerProcess | None = None
    begun: float = 0.0
    starts: int = 0
    last_words: str = ""
    ended: str = ""
    given_up: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class OwnProcesses(Supply):
    """Servers that the run starts on this machine, starts again when one dies, and ends with itself.

    Args:
        count: servers.
        start: starts the process of the server of a number at a port, with a log file.
        logs: folder of the log files.
        answers: see `Supply`.
        start_timeout: seconds a server may take to answer.
        restarts: times each may be started again.
    """

    def __init__(
        self,
        count: int,
        start: Callable[[int, int, Path], ServerProcess],
        *,
        logs: Path,
        answers: Callable[[Address], bool],
        start_timeout: float,
        restarts: int,
    ) -> None:
        super().__init__(answers)
        self._start, self._logs = start, logs
        self._limit, self._restarts = start_timeout, restarts
        self._places = [_Place(number) for number in range(count)]
        self._stopped = False

    def start(self) -> list[Address]:
        """See `Supply`."""
        self._logs.mkdir(parents=True, exist_ok=True)
        for place in self._places:
            self._launch(place)
        wait = Wait(self._limit)  # all start at the same time
        ready = [self._await(place, wait) for place in self._places]
        if missing := [place for place, address in zip(self._places, ready, strict=True) if address is None]:
            self.stop()
            log, words = self._logs / f"server-{missing[0].number}.log", missing[0].last_words
            why = missing[0].ended or f"no answer within {self._limit:g} s (rollout.servers.start_timeout); "
            raise EngineError(
                f"rollout.servers: server {missing[0].number} did not start: {why}its log {log} ends with:\n"
                f"{words or '(nothing)'}"
            )
        return [address for address in ready if address is not None]

    @property
    def starting(self) -> bool:
        """See `Supply`."""
        return not self._stopped and any(not place.given_up for place in self._places)

    @property
    def remedy(self) -> str:
        """See `Supply`."""
        return f"Their logs are in {self._logs}. Go on with --resume, which starts servers anew."

    def lost(self, address: Address) -> str:
        """See `Supply`."""
        place = self._places[address.number]
        with place.lock:
            if place.address != address:
                return "it has been started again"
            self._end(place)
            if not self._again(place):
                why = "the run ends" if self._stopped else f"rollout.servers.restarts={self._restarts}"
                done = f"it was started {counted(place.starts, 'time')} and is left out from now on ({why})"
            else:
                which = f"restart {place.starts - 1} of {self._restarts}"
                done = f"it is started again ({which}), and samples once it has the weights"
        return f"{place.ended}{done}"

    def present(self) -> list[Address]:
        """See `Supply`."""
        running = [place for place in self._places if not place.given_up]
        found = [address for place in running if (address := self._ready(place, self._is_late(place))) is not None]
        if found:
            return found
        while any(not place.given_up for place in self._places):
            for place in self._places:
                if not place.given_up and (address := self._await(place, Wait(self._limit))) is not None:
                    return [address]
        return []

    def stop(self) -> None:
        """End all of them, at the same time; none is started again."""
        self._stopped = True
        enders = [threading.Thread(target=self._stop, args=(place,)) for place in self._places]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join()

    def _stop(self, place: _Place) -> None:
        with place.lock:
            self._end(place)

    def _launch(self, place: _Place) -> None:
        port = free_port()
        place.address = Address(number=place.number, url=f"http://{LOOPBACK}:{port}")
        place.process = self._start(place.number, port, self._logs / f"server-{place.number}.log")
        place.begun = time.monotonic()
        place.starts += 1

    def _again(self, place: _Place) -> bool:
        """Start it again if it may be; whether it was."""
        place.given_up = self._stopped or place.starts > self._restarts
        if not place.given_up:
            self._launch(place)
        return not place.given_up

    def _end(self, place: _Place) -> None:
        if place.process is not None:
            place.process.stop()
            place.ended = f"{end}; " if (end := place.process.end) else ""
            place.last_words = place.process.last_words()
            place.process = None

    def _is_late(self, place: _Place) -> bool:
        return time.monotonic() - place.begun > self._limit

    def _ready(self, place: _Place, late: bool) -> Address | None:
        """Where it answers; one that has died, or does not answer though `late`, is started again if it may be."""
        with place.lock:
            address, process = place.address, place.process
            if process is None or address is None:
                return None
            if process.exit_code is None and self._answers(address):
                return address
            if process.exit_code is None and not late:
                return None
            self._end(place)
            self._again(place)
            return None

    def _await(self, place: _Place, wait: Wait) -> Address | None:
        """Where it answers, within `wait`; None if it ends before, or does not answer by then."""
        starts = place.starts
        while place.starts == starts and not place.given_up:
            if (address := self._ready(place, wait.over())) is not None:
                return address
            time.sleep(min(LOOK, wait.pause))
        return None
