"""One process in a sandbox, held to its limits from outside; whatever happens, nothing of it is left running."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal, Self

from exprl.errors import ExecutionError
from exprl.execution.files import Pipe, sealed
from exprl.execution.limits import Limits
from exprl.execution.memory import children_of, group_memory
from exprl.execution.sandboxes import Sandbox
from exprl.waiting import Wait

START_SECONDS = 300.0
"""For a sandbox to stand, on a machine that has much else to do; one that cannot ends at once."""
_LOOK_EVERY = 0.05
_GONE_SECONDS = 10.0
"""For all processes of a sandbox to go, which have been killed."""
_SHOWN = 300

Role = Literal["script", "serve", "check"]


class LimitError(Exception):
    """A run went past a limit: `time`, `memory` or `output`."""

    def __init__(self, limit: Literal["time", "memory", "output"]) -> None:
        super().__init__(limit)
        self.limit = limit


class StoppedError(Exception):
    """Whoever asked for the run wants it no more."""


class Contained:
    """A process in a sandbox, from its start to its end; use it with `with`, after which nothing of it runs.

    `descriptors` are files that it is given, by the names that `inside/launch.py` knows them by; they stay open here. A
    process for several `runs` may use the CPU that much longer in all.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        role: Role,
        program: bytes,
        limits: Limits,
        *,
        stdin: bytes = b"",
        runs: int = 1,
        descriptors: Mapping[str, int] | None = None,
        options: Mapping[str, Any] | None = None,
        stopping: threading.Event | None = None,
    ) -> None:
        self.limits = limits
        self._sandbox = sandbox
        self._stopping = stopping or threading.Event()
        self._first: int | None = None
        self._looked = 0.0
        with ExitStack() as theirs, ExitStack() as ours:
            try:
                self._errors = ours.enter_context(tempfile.TemporaryFile())
                ready = ours.enter_context(Pipe())
                handed = {"ready": ready.writes.fileno(), "program": _handed(program, theirs), **(descriptors or {})}
                given = {"limits": _inside(limits, sandbox, runs), **handed, **(options or {})}
                command = sandbox.command([role, json.dumps(given)], limits)
                for descriptor in command.descriptors:
                    theirs.callback(os.close, descriptor)
                self.process = subprocess.Popen(
                    command.arguments,
                    stdin=_handed(stdin, theirs),
                    stdout=subprocess.PIPE if role == "script" else subprocess.DEVNULL,
                    stderr=self._errors,
                    pass_fds=(*handed.values(), *command.descriptors),
                    env=dict(command.environment),
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                raise cannot_start(error) from error
            ready.writes.close()
            self._ready = ready.reads
            self._ours = ours.pop_all()
        self._left = Wait(START_SECONDS, pause=_LOOK_EVERY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def wait_ready(self) -> None:
        """Wait for the sandbox to stand; the time of the run counts from there.

        Raises:
            ExecutionError: it does not. Nothing is known of the program then.
        """
        try:
            said = self.read(self._ready.fileno(), 5)
        except LimitError:
            said = b""
        if said != b"ready":
            raise ExecutionError(f"a sandbox does not start: {self._complaint()}")
        self._first = _first_within(self.process.pid, self._sandbox)
        self.renew()

    def renew(self) -> None:
        """The time of a run counts from now."""
        self._left = Wait(self.limits.wall, pause=_LOOK_EVERY)

    def read_all(self) -> bytes:
        """Everything that it prints, to its end; raises `LimitError`."""
        assert self.process.stdout is not None
        return self.read(self.process.stdout.fileno(), self.limits.output + 1)

    def read(self, descriptor: int, most: int, until: bytes | None = None, *, beside: Contained | None = None) -> bytes:
        """Up to `most` bytes, or up to the first that end in `until`, or to the end; `beside` is watched as well.

        Raises:
            LimitError: more than the limit of output came without that end; or as `watch` does.
        """
        found = bytearray()
        while len(found) < most and not (until is not None and found.endswith(until)):
            self.wait_for(descriptor, select.POLLIN, beside)
            part = os.read(descriptor, min(most - len(found), 2**16))
            if not part:
                break
            found += part
            if len(found) > self.limits.output:
                raise LimitError("output")
        return bytes(found)

    def write(self, file: io.FileIO, content: bytes) -> bool:
        """Write all; False where nobody reads it any more."""
        descriptor = file.fileno()
        os.set_blocking(descriptor, False)
        view = memoryview(content)
        while view:
            self.wait_for(descriptor, select.POLLOUT)
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return False
        return True

    def wait_for(self, descriptor: int, event: int, beside: Contained | None = None) -> None:
        """Wait until something can be read or written; raises as `watch` does."""
        poll = select.poll()
        poll.register(descriptor, event)
        while not poll.poll(_LOOK_EVERY * 1000):
            self.watch()
            if beside is not None:
                beside.watch()
        self.watch()

    def watch(self) -> None:
        """Raise `LimitError` or `StoppedError` where the run has to end."""
        if self._stopping.is_set():
            raise StoppedError
        if self._left.over():
            raise LimitError("time")
        if time.monotonic() > self._looked + _LOOK_EVERY:
            self._looked = time.monotonic()
            if group_memory(self.process.pid) > self.limits.memory * 2**20:
                raise LimitError("memory")

    def ended(self) -> int:
        """Its exit status, once its output has ended; negative or above 128 where a signal ended it."""
        while True:
            try:
                return self.process.wait(_LOOK_EVERY)
            except subprocess.TimeoutExpired:
                self.watch()

    def kill(self) -> None:
        """End it and all that it started, and wait until they are gone."""
        if self._first is None:
            self._first = _first_within(self.process.pid, self._sandbox)
        if self._first is not None:
            _end(self._first)
            os.close(self._first)
            self._first = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_LOOK_EVERY)  # it waits for its child
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._ours.close()

    def _complaint(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_LOOK_EVERY)
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()[-_SHOWN:]
        if said:
            return said
        return f"no word of it, exit status {self.process.returncode}; it has {self.limits.memory} MiB of memory"


def cannot_start(error: OSError) -> ExecutionError:
    """The error for a system that refuses what a sandbox needs."""
    full = error.errno in (errno.EMFILE, errno.ENFILE)
    advice = ". Raise the limit of open files (ulimit -n), or set fewer workers" if full else ""
    return ExecutionError(f"a sandbox cannot be started: {error}{advice}.")


def probe(sandbox: Sandbox) -> None:
    """Run nothing in a sandbox; raises `ExecutionError` where none can be made here."""
    with Contained(sandbox, "script", b"pass", Limits()) as process:
        process.wait_ready()
        process.read_all()


def _handed(content: bytes, stack: ExitStack) -> int:
    descriptor = sealed(content)
    stack.callback(os.close, descriptor)
    return descriptor


def _first_within(pid: int, sandbox: Sandbox) -> int | None:
    """A descriptor of the first process of a sandbox's namespace, the child of bubblewrap's own."""
    if not sandbox.isolates:
        return None
    for child in children_of(pid):
        with contextlib.suppress(OSError):
            return os.pidfd_open(child)
    return None


def _end(first: int) -> None:
    """End the first process of a namespace: with it the kernel ends all others, and it is gone when they are.

    Bubblewrap's own process, outside, may end before: as soon as it knows of an exit status.
    """
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(first, signal.SIGKILL)
    poll = select.poll()
    poll.register(first, select.POLLIN)
    poll.poll(_GONE_SECONDS * 1000)


def _inside(limits: Limits, sandbox: Sandbox, runs: int) -> dict[str, int]:
    processes = limits.processes if sandbox.isolates else 0
    return {"cpu": limits.cpu * runs, "memory": limits.memory, "files": limits.files, "processes": processes}
