"""A process that has imported what `exprl train` imports, and forks one that goes on from there for every request.

Run by `tests.forked`, which says what such a process is for. In the forked process everything that a Python process of
its own would find is made so: working directory, environment, descriptors, session, `sys.path`, arguments, command
line, random states. It then runs its module or code as the interpreter itself does, and ends as the interpreter does.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PRELOADED = (
    "exprl.cli",
    "exprl.commands.train",
    "exprl.training.module",
    "exprl.study.runner",
    "torch.distributed.launcher.api",
    "transformers.models.llama.modeling_llama",
)
"""What they import in turn takes the time: torch, transformers, Lightning."""

VLLM = (
    "exprl.engines.vllm_host",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.launchers.api_server.routers",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
)
"""What an engine of vLLM, and each of the processes of its server, imports besides."""

BEFORE_PYTHON = (
    *("PYTHON", "LD_", "MALLOC_", "LC_", "LANG", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "DNNL_", "ONEDNN_"),
    *("TORCH_", "PYTORCH_", "ATEN_", "CUDA_", "TRITON_", "TQDM_", "FSSPEC_"),
)
"""How variables begin that the interpreter or its libraries may read without `os.environ`, or all together."""

QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
"""What `exprl` sets, before it imports anything that reads it, where its errors are not written to a terminal."""

SET_BY_VLLM = (
    *("LD_LIBRARY_PATH", "PYTORCH_NVML_BASED_CUDA_CHECK", "TRITON_CACHE_AUTOTUNING", "TORCHINDUCTOR_COMPILE_THREADS"),
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR", "TILELANG_CLEANUP_TEMP_FILES"),
    *("LD_PRELOAD", "GOMP_CPU_AFFINITY", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS"),
)
"""What vLLM, and OpenCV with it, set in a process that imports them: nothing could be forked after a test that does.

The last line is for processes that an engine starts, and concerns threads, of which there is one.
"""

READ_BY_VLLM = ("VLLM_LOGGING_LEVEL", "VLLM_SERVER_DEV_MODE", "VLLM_ENABLE_V1_MULTIPROCESSING")
"""What it may read as it is imported, for what is logged alone, and reads again where it counts."""

MADE_ANEW = (
    *(*QUIET, "PYTHONPATH", "PYTHONSAFEPATH", "RANK", "LOCAL_RANK", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
    *(*SET_BY_VLLM, *READ_BY_VLLM),
)
"""Variables that a forked process may have of its own: `become` does what they ask for, or they are for GPUs."""

ALONE = ["-I", "-S"]
"""Options before a file that needs the standard library alone: what else it could find it does not look for."""
FILE = "file"

HIGH = 900
"""Descriptors of the server's own are above, out of the way of those that a forked process is given."""


HANDED_ON = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""Signals that the server ignores itself, and how a Python process begins with them where they were not ignored."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A Python process to be: the words after the interpreter's name, and where it shall run.

    `kept` are the numbers under which it has `received`, descriptors of this process; `ignored` the signals of
    `HANDED_ON` that whoever asked ignores; `first` the file and the name of a function that is called before all else.
    """

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    kept: list[int]
    session: bool
    group: int
    parent: int
    ignored: list[int]
    first: list[str]
    received: list[int] = field(default_factory=list)

    def encoded(self) -> bytes:
        return json.dumps({**asdict(self), "received": []}).encode()


class Reads(type(os.environ)):  # type: ignore[misc]
    """`os.environ` that keeps the names it was asked for one by one."""

    names: set[str] = set()  # noqa: RUF012
    walking = 0

    def __getitem__(self, name: str) -> str:
        if not Reads.walking:
            Reads.names.add(name)
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[str]:
        Reads.walking += 1
        try:
            yield from super().__iter__()
        finally:
            Reads.walking -= 1


def preload(modules: Sequence[str]) -> list[str]:
    """Import them; returns the names of variables that were read meanwhile."""
    # where scikit-learn is installed transformers imports pandas, and so pyarrow, whose allocator has a thread
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    genuine = type(os.environ)
    os.environ.__class__ = Reads
    gc.disable()  # which would be a third of the work
    for module in modules:
        importlib.import_module(module)
    gc.enable()
    os.environ.__class__ = genuine
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, "a process with threads cannot be forked"
    return sorted(map(os.fsdecode, Reads.names))


def serve(channel: socket.socket) -> Request:
    """Fork for every request until the other end is closed; returns in the forked processes alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to the whole group, it is for the others, who may yet ask
    while True:
        message, received, *_ = socket.recv_fds(channel, 1 << 20, 64)
        if not message:
            os._exit(0)
        read, write = os.pipe()
        between = os.fork()
        if not between:
            # The child of one that ends gets the nearest ancestor that asks for such: whoever sent the request.
            child = os.fork()
            if child:
                os.write(write, str(child).encode())
                os._exit(0)
            for descriptor in (read, write):
                os.close(descriptor)
            channel.close()
            return Request(**{**json.loads(message), "received": received})
        os.close(write)
        child = int(os.read(read, 32))
        os.close(read)
        os.waitpid(between, 0)
        for descriptor in received:
            os.close(descriptor)
        channel.send(str(child).encode())


def high(descriptor: int) -> int:
    """The same, above `HIGH`; the one given is closed."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, HIGH)
    os.close(descriptor)
    return moved


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a channel that keeps messages apart, above `HIGH`."""
    one, other = (socket.socket(fileno=high(end.detach())) for end in socket.socketpair(type=socket.SOCK_SEQPACKET))
    return one, other


def with_server_of_its_own(request: Request) -> tuple[Request, socket.socket]:
    """Fork a server for what this process will start; returns in its processes, too, with what they shall be."""
    ours, theirs = pair()
    server = os.fork()
    if not server:
        ours.close()
        for descriptor in request.received:
            os.close(descriptor)
        return with_server_of_its_own(entered(serve(theirs)))
    theirs.close()
    owner = os.getpid()

    def end() -> None:
        if os.getpid() != owner:  # forked from that one, which is a server itself
            return
        ours.close()
        os.waitpid(server, 0)

    atexit.register(end)
    return request, ours


def entered(request: Request) -> Request:
    """The child of whoever asked, in the session or process group asked for."""
    for number, usual in HANDED_ON.items():
        signal.signal(number, signal.SIG_IGN if number in request.ignored else usual)
    while os.getppid() != request.parent:
        time.sleep(0.0005)
    if request.session:
        os.setsid()
    elif request.group >= 0:
        os.setpgid(0, request.group)
    if request.first:
        file, name = request.first
        runpy.run_path(file)[name]()
    return request


def become(request: Request, paths: list[str]) -> None:
    """Make this process what the interpreter would make of the request before it runs any code of it."""
    moved = [high(descriptor) for descriptor in request.received]
    for number, descriptor in zip(request.kept, moved, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    sys.path[:] = [*python_path(request.environment), *paths]
    sys.orig_argv[:] = [sys.executable, *request.arguments]
    name_process(sys.orig_argv)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]

    import numpy as np
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    if "VLLM_LOGGING_LEVEL" in request.environment and "vllm" in sys.modules:
        from vllm.logger import _configure_vllm_root_logger

        _configure_vllm_root_logger()
    np.random.seed()  # Python's own is seeded anew by fork itself, and torch begins with a number
    rank_zero_only.rank = _get_rank() or 0


def python_path(environment: Mapping[str, str]) -> list[str]:
    """What PYTHONPATH adds to `sys.path`, seen from the working directory."""
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    return [os.path.abspath(path) for path in paths if path]  # noqa: PTH100 - links stay


def name_process(words: list[str]) -> None:
    """Write the command line that /proc and `ps` show over that of the server, which was given room for it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    text = b"".join(os.fsencode(word) + b"\0" for word in words)[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


class SafePath:
    """`sys.flags` of an interpreter started with PYTHONSAFEPATH."""

    safe_path = True

    def __init__(self, flags: Any) -> None:
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        return getattr(self._flags, name)


def start(request: Request) -> None:
    """Run a module, code or a file, each as the interpreter does; what it raises is for the interpreter."""
    options, (kind, what, *rest) = split(request.arguments)
    if "-u" in options:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    if "PYTHONSAFEPATH" in request.environment or "-I" in options:
        sys.flags = SafePath(sys.flags)  # type: ignore[misc, assignment]
    else:
        sys.path.insert(0, request.folder if kind == "-m" else "")
    main = sys.modules["__main__"]
    for name in [name for name in vars(main) if not name.startswith("__")]:
        delattr(main, name)
    sys.argv[:] = [what if kind == FILE else kind, *rest]
    if kind == "-m":
        runpy._run_module_as_main(what)  # type: ignore[attr-defined]
    elif kind == FILE:
        exec(compile(Path(what).read_text(), what, "exec"), vars(main))
    else:
        exec(compile(what, "<string>", "exec"), vars(main))


def finish(error: BaseException | None) -> None:
    """End as the interpreter does, but for taking every module apart, which would copy every page first."""
    code = 0
    if isinstance(error, SystemExit):
        given = 0 if error.code is None else error.code
        if not isinstance(given, int):
            print(given, file=sys.stderr)
        code = given & 0xFF if isinstance(given, int) else 1
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Options of the interpreter, and the rest from `-m`, `-c` or `FILE` on; what else there may be is refused.

    Raises:
        ValueError: arguments of another form.
    """
    if arguments[:2] == ALONE and len(arguments) > 2 and not arguments[2].startswith("-"):
        return ALONE, [FILE, *arguments[2:]]
    options = arguments[:1] if arguments[:1] == ["-u"] else []
    rest = arguments[len(options) :]
    if len(rest) < 2 or rest[0] not in ("-m", "-c"):
        raise ValueError(f"neither -m module nor -c code: {arguments}")
    return options, rest


def main() -> None:
    """`python -c "from tests.fork_server import main; main()" DESCRIPTOR ROOM MODULE ...`."""
    from tests.forked import Server, install

    own = python_path(os.environ)
    paths = [path for path in sys.path[1:] if path not in own]
    channel = socket.socket(fileno=high(int(sys.argv[1])))
    before = dict(os.environ)
    reads = preload(sys.argv[3:])
    gc.collect()
    gc.freeze()  # collections of a forked process would otherwise copy every page
    channel.send(json.dumps({"reads": reads, "environment": before}).encode())
    request, servant = with_server_of_its_own(entered(serve(channel)))
    become(request, paths)
    install(Server(servant, frozenset(reads), before))
    try:
        start(request)
    except BaseException as error:  # noqa: BLE001
        finish(error)
    finish(None)
