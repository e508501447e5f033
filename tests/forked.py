"""Python processes that cost 0.1 s of CPU to start in place of 4: forked from one that has imported the libraries.

Within `forking()`, `subprocess` has every `[sys.executable, "-m" or "-c", ...]` forked by `tests.fork_server`, and
`multiprocessing` every process that it spawns, also those that such processes start in turn; `forking(*VLLM)` does so
from a process that has vLLM as well. To whoever starts it the process is as any other: its own child with a true
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
import multiprocessing.util
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.fork_server import (
    BEFORE_PYTHON,
    HANDED_ON,
    MADE_ANEW,
    PRELOADED,
    QUIET,
    Request,
    pair,
    python_path,
    split,
)


def _genuine_of(function: Any) -> Any:
    """What the interpreter has where a fork server's process has a function made here."""
    return getattr(function, "in_place_of", function)


_GENUINE = _genuine_of(subprocess.Popen._execute_child)  # type: ignore[attr-defined]
_GENUINE_SPAWN = _genuine_of(multiprocessing.util.spawnv_passfds)  # type: ignore[attr-defined]
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
    unusual = {"shell": False, "gid": None, "gids": None, "uid": None, "umask": -1}
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
        ignored=_ignored(),
        first=_first(given["preexec_fn"]),
    )


def _ignored() -> list[int]:
    return [number for number in HANDED_ON if signal.getsignal(number) is signal.SIG_IGN]


def _first(function: Any) -> list[str]:
    """Where the process finds what it is to call first: a function of a file, which is run for it.

    Raises:
        ValueError: it is another kind of function.
    """
    if function is None:
        return []
    if not inspect.isfunction(function) or function.__closure__ or "." in function.__qualname__:
        raise ValueError("no function that a file has by its name")
    return [function.__code__.co_filename, function.__name__]


def _spawned(arguments: Sequence[bytes | str], passed: Sequence[int]) -> Request:
    """A process that `multiprocessing` spawns, with this interpreter's own options.

    Raises:
        ValueError: it is one of its helpers.
    """
    words = [os.fsdecode(word) for word in arguments[1:]]
    if "--multiprocessing-fork" not in words:
        raise ValueError("not a process that was asked for")
    return Request(
        arguments=words[words.index("-c") :],
        environment=dict(os.environ),
        folder=os.getcwd(),  # noqa: PTH109 - as it is
        kept=[0, 1, 2, *sorted(map(int, passed))],
        session=False,
        group=-1,
        parent=os.getpid(),
        ignored=_ignored(),
        first=[],
    )


def _elsewhere(folder: str, environment: Mapping[str, str]) -> Iterator[Path]:
    """Where `sys.path` of the process begins, but for this checkout, which the server has, too."""
    for place in (folder, *python_path(environment)):
        if Path(place) != _ROOT:
            yield Path(place)


def install(server: Server) -> None:
    """Let `subprocess` and `multiprocessing` start by `server` what it can."""

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

    def spawn(path: Any, arguments: Sequence[bytes | str], passed: Sequence[int]) -> int:
        try:
            request = _spawned(arguments, passed)
        except ValueError:
            return int(_GENUINE_SPAWN(path, arguments, passed))
        if server.differs(request.environment):
            return int(_GENUINE_SPAWN(path, arguments, passed))
        return server.fork(request, request.kept)

    execute_child.in_place_of, spawn.in_place_of = _GENUINE, _GENUINE_SPAWN  # type: ignore[attr-defined]
    _start_by(execute_child, spawn)


@contextlib.contextmanager
def genuine() -> Iterator[None]:
    """Processes of their own again, within."""
    before = subprocess.Popen._execute_child, multiprocessing.util.spawnv_passfds  # type: ignore[attr-defined]
    _start_by(_GENUINE, _GENUINE_SPAWN)
    try:
        yield
    finally:
        _start_by(*before)


def _start_by(execute_child: Any, spawn: Any) -> None:
    subprocess.Popen._execute_child = execute_child  # type: ignore[attr-defined]
    multiprocessing.util.spawnv_passfds = spawn  # type: ignore[attr-defined]


def possible() -> bool:
    """On Linux, where alone a process can be given to another parent, and without a GPU."""
    return sys.platform == "linux" and not torch.cuda.is_available()


@functools.cache
def launch(*modules: str) -> Server:
    """The fork server of this process that has imported these modules besides, which ends with it.

    One with further modules is itself forked from the one without.
    """
    ours, theirs = pair()
    start = "from tests.fork_server import main; main()"
    command = [sys.executable, "-c", start, str(theirs.fileno()), _ROOM, *PRELOADED, *modules]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    with forking() if modules else genuine():
        subprocess.Popen(
            command,
            cwd=_ROOT,
            env={**environment, **QUIET, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    theirs.close()
    found = json.loads(ours.recv(1 << 20))
    reads = launch().reads if modules else frozenset()
    return Server(ours, reads.union(found["reads"]), found["environment"])


@contextlib.contextmanager
def forking(*modules: str) -> Iterator[None]:
    """Forked processes, within, where they are `possible`; they have these modules besides."""
    with genuine():
        if possible():
            install(launch(*modules))
        yield
