"""Python processes that cost 0.1 s of CPU to start in place of 4: forked from one that has imported the libraries.

Within `forking()`, `subprocess` has every `[sys.executable, "-m" or "-c", ...]` forked by `tests.fork_server`, also
those that such processes start in turn. To whoever starts it the process is as any other: its own child with a true
process id, exit code, signals, pipes, session, environment, folder and command line; each is shown in
`tests/integration/test_forked.py`. What cannot be forked truly is started as ever: other options of the interpreter, or
a variable with another value than it had when the libraries were imported, if that is one that they read. With a GPU
all are, as a driver in use does not survive a fork.

Three things stay different, so that tests of each way to start a run are kept out of it, by the fixture `genuine`:
modules are there that a program might have forgotten to import, hash seeds are those of the server, and a process ends
without taking its modules apart.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.fork_server import BEFORE_PYTHON, HANDED_ON, MADE_ANEW, QUIET, Request, pair, python_path, split

_GENUINE = subprocess.Popen._execute_child  # type: ignore[attr-defined]
_SIGNATURE = inspect.signature(_GENUINE)
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_ROOT = Path(__file__).parents[1]
_LIBRARIES = ("exprl", "torch", "transformers", "lightning", "numpy")
_ROOM = " " * 30000
"""Of the server's command line, for those of its processes."""


@dataclass(frozen=True)
class Server:
    """A fork server: the channel to it, the variables that its imports read, and the environment they saw."""

    channel: socket.socket
    reads: frozenset[str]
    environment: Mapping[str, str]

    def differs(self, environment: Mapping[str, str]) -> list[str]:
        """Variables for which what is imported there would not be what is imported in `environment`."""
        return [
            name
            for name in {*self.environment, *environment}
            if self.environment.get(name) != environment.get(name)
            and (name in self.reads or name.startswith(BEFORE_PYTHON))
            and name not in MADE_ANEW
        ]

    def fork(self, request: Request, descriptors: list[int]) -> int:
        """The process id of what was asked for, a child of this process."""
        with _LOCK, _adopting():
            socket.send_fds(self.channel, [request.encoded()], descriptors)
            return int(self.channel.recv(32))


_LOCK = threading.Lock()


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Orphans below this process become its children."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SUBREAPER, 0, 0, 0, 0)


def _request(given: Mapping[str, Any]) -> Request:
    """What `Popen` was given, as a request.

    Raises:
        ValueError: it asks for something that is not done here.
    """
    args, environment = given["args"], given["env"]
    unusual = {"preexec_fn": None, "shell": False, "gid": None, "gids": None, "uid": None, "umask": -1}
    if any(given[name] != usual for name, usual in unusual.items()) or not given["close_fds"]:
        raise ValueError("a process of a kind that is not forked")
    if isinstance(args, (str, bytes, os.PathLike)) or args[0] != sys.executable or given["executable"]:
        raise ValueError("not this interpreter")
    arguments = [os.fsdecode(word) for word in args[1:]]
    split(arguments)
    folder = os.path.abspath(given["cwd"] or ".")  # noqa: PTH100 - as given, be it `str` or `Path`
    if not os.path.isdir(folder):  # noqa: PTH112
        raise ValueError("an error for Popen to raise")
    environment = dict(os.environ if environment is None else environment)
    if any((place / name).exists() for place in _elsewhere(folder, environment) for name in _LIBRARIES):
        raise ValueError("a library from elsewhere")
    return Request(
        arguments=arguments,
        environment=environment,
        folder=folder,
        kept=[0, 1, 2, *sorted(given["pass_fds"])],
        session=given["start_new_session"],
        group=given["process_group"],
        parent=os.getpid(),
        ignored=[number for number in HANDED_ON if signal.getsignal(number) is signal.SIG_IGN],
    )


def _elsewhere(folder: str, environment: Mapping[str, str]) -> Iterator[Path]:
    """Where `sys.path` of the process begins, but for this checkout, which the server has, too."""
    for place in (folder, *python_path(environment)):
        if Path(place) != _ROOT:
            yield Path(place)


def install(server: Server) -> None:
    """Let `subprocess` start by `server` what it can."""

    def execute_child(self: Any, *args: Any) -> None:
        given = _SIGNATURE.bind(self, *args).arguments
        try:
            request = _request(given)
        except ValueError:
            return _GENUINE(self, *args)
        if server.differs(request.environment):
            return _GENUINE(self, *args)
        pipes = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        streams = [number if pipe == -1 else pipe for number, pipe in enumerate(pipes)]
        self.pid = server.fork(request, [*streams, *request.kept[3:]])
        self._child_created = True
        both = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in both))
        return None

    subprocess.Popen._execute_child = execute_child  # type: ignore[attr-defined]


@contextlib.contextmanager
def genuine() -> Iterator[None]:
    """Processes of their own again, within."""
    before = subprocess.Popen._execute_child  # type: ignore[attr-defined]
    subprocess.Popen._execute_child = _GENUINE  # type: ignore[attr-defined]
    try:
        yield
    finally:
        subprocess.Popen._execute_child = before  # type: ignore[attr-defined]


def possible() -> bool:
    """On Linux, where alone a process can be given to another parent, and without a GPU."""
    return sys.platform == "linux" and not torch.cuda.is_available()


@functools.cache
def launch() -> Server:
    """The fork server of this process, which ends with it."""
    ours, theirs = pair()
    command = [sys.executable, "-c", "from tests.fork_server import main; main()", str(theirs.fileno()), _ROOM]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    with genuine():
        subprocess.Popen(
            command,
            cwd=_ROOT,
            env={**environment, **QUIET, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    theirs.close()
    found = json.loads(ours.recv(1 << 20))
    return Server(ours, frozenset(found["reads"]), found["environment"])


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Forked processes, within, where they are `possible`."""
    with genuine():
        if possible():
            install(launch())
        yield
