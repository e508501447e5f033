"""Runs a study's processes: so many at once, each after the one it starts from, and none outlives the study."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from exprl.errors import ExprlError, PathError, RunDirectoryError
from exprl.files.disk import reason
from exprl.files.lock import LOCK, acquire, held, holder, in_use
from exprl.study.runs import Run, with_parents
from exprl.terminal.console import Console
from exprl.terminal.progress_bar import ProgressBar
from exprl.training.interruption import Interrupted, Interruption

POLL = 0.1
GRACE = 120.0
"""Seconds a stopped run has to save its finished steps."""
LOCK_WAIT = 60.0
"""Seconds to wait for what a killed study left running."""
SHOWN_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that did not finish, by name, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Who computes where: `jobs` processes at once, each with its own share of the GPUs and cores."""

    jobs: int
    gpus: tuple[str, ...] = ()

    @classmethod
    def found(cls, jobs: int | None) -> Devices:
        """The GPUs this process may use; by default one job for each, or a single one."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            import torch

            gpus = tuple(map(str, range(torch.cuda.device_count())))
        else:
            gpus = tuple(item.strip() for item in visible.split(",") if item.strip() not in ("", "-1"))
        return cls(jobs=jobs or max(len(gpus), 1), gpus=gpus)

    def environment(self, slot: int, outside: Mapping[str, str]) -> dict[str, str]:
        """The environment of the process in `slot`, within that of the study; more jobs than GPUs share them in turn.

        A process that starts a rank for each of its GPUs gives each rank `OMP_NUM_THREADS`, so these share the cores.

        >>> Devices(jobs=2, gpus=("0", "1", "2", "3")).environment(1, {})["CUDA_VISIBLE_DEVICES"]
        '2,3'
        """
        share = len(self.gpus) // self.jobs
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // (self.jobs * max(1, share))))}
        if not self.gpus:
            return {**threads, **outside}
        own = self.gpus[slot * share : (slot + 1) * share] or (self.gpus[slot % len(self.gpus)],)
        return {**threads, **outside, "CUDA_VISIBLE_DEVICES": ",".join(own)}


class Runner:
    """Executes runs in processes of their own.

    Args:
        devices: how many at once, and where.
        console: is told of every run that ends.
        lock: descriptor of the study's lock, which every process keeps until it ends.
    """

    def __init__(self, devices: Devices, console: Console, lock: int) -> None:
        self._devices = devices
        self._console = console
        self._lock = lock
        self._running: dict[int, tuple[Run, subprocess.Popen[bytes], float]] = {}

    def execute(self, runs: Sequence[Run], what: str) -> list[Failure]:
        """Run what is not finished, and first what it starts from; a failure stops only what starts from it.

        Raises:
            Interrupted: a signal asked the study to stop; its processes have saved their finished steps and ended.
        """
        needed = with_parents(runs)
        waiting = [run for run in needed if not run.finished]
        failed: dict[str, Failure] = {}
        count = len(needed)
        with (
            ProgressBar(what, count, "run", initial=count - len(waiting), leave=True) as bar,
            Interruption(lambda: False).listening(),
        ):
            try:
                while waiting or self._running:
                    waiting = self._start(waiting, failed)
                    for failure in self._ended(bar):
                        failed[failure.name] = failure
                    time.sleep(POLL if self._running else 0)
            except BaseException:
                self._stop()
                raise
        return list(failed.values())

    def _start(self, waiting: list[Run], failed: dict[str, Failure]) -> list[Run]:
        """Start what can be; returns what still waits."""
        still: list[Run] = []
        for run in waiting:
            parent = run.parent
            if parent is not None and parent.name in failed:
                failed[run.name] = Failure(name=run.name, reason=f"not started: {parent.name} failed")
            elif (parent is None or parent.finished) and len(self._running) < self._devices.jobs:
                try:
                    self._launch(run)
                except ExprlError as error:
                    failed[run.name] = self._report(run, str(error))
            else:
                still.append(run)
        return still

    def _launch(self, run: Run) -> None:
        run.prepare()
        slot = next(slot for slot in range(self._devices.jobs) if slot not in self._running)
        command = [sys.executable, "-m", "exprl.study.child", str(os.getpid()), *run.arguments]
        with run.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._devices.environment(slot, os.environ),
                pass_fds=(self._lock,),
                start_new_session=True,  # Ctrl-C comes to the study alone, which passes it on once
            )
        self._running[slot] = (run, process, time.monotonic())

    def _ended(self, bar: ProgressBar) -> Iterator[Failure]:
        for slot, (run, process, start) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[slot]
            bar.clear()
            if code == 0 and run.finished:
                seconds = time.monotonic() - start
                self._console.say(f"{run.name}: {run.figures()} ({seconds:.0f} s)")
            else:
                how = f"exit code {code}" if code >= 0 else f"signal {-code}"
                yield self._report(run, f"{how}; {run.log} ends:\n{tail(run.log)}")
            bar.update(1)

    def _report(self, run: Run, reason: str) -> Failure:
        self._console.say((f"{run.name} failed:", "bold red"), f" {reason}")
        return Failure(name=run.name, reason=reason)

    def _stop(self) -> None:
        """Let every process save and end; a second signal does not wait."""
        processes = [process for _, process, _ in self._running.values()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + GRACE
        try:
            for process in processes:
                process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, Interrupted):
            pass
        finally:
            for process in processes:
                process.kill()
                process.wait()
            self._running.clear()


def tail(log: Path) -> str:
    """The last lines of a log."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return "\n".join(f"    {line}" for line in lines[-SHOWN_LINES:])


@contextmanager
def locked(folder: Path, say: Callable[[str], object]) -> Iterator[int]:
    """The study's lock, as a descriptor that its processes inherit: it is free only when the last of them has ended.

    Raises:
        RunDirectoryError: another study is running there, or what a killed one left does not end.
        PathError: the folder cannot be made or written.
    """
    file, what = folder / LOCK, f"study_dir {folder}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PathError(f"{what}: cannot be made ({reason(error)}). Set study_dir=...") from error
    deadline, said = time.monotonic() + LOCK_WAIT, False
    while (descriptor := acquire(file)) is None:
        other = holder(file)
        if other is not None and not other.gone:
            raise in_use(file, what)
        if time.monotonic() > deadline:
            raise RunDirectoryError(f"{what}: runs of a killed study have not ended. End them first.")
        if not said:
            say("waiting for the runs of a killed study to end")
            said = True
        time.sleep(POLL)
    with held(file, descriptor):
        yield descriptor
