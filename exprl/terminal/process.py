"""The two ends of a process of the command line, between which torch, transformers and Lightning stay imported.

They are a million objects that live as long as the process does. Python's garbage collector goes through them again and
again while they are made, and its interpreter takes every one of them apart at the end: two fifths of what a short
command costs.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from weakref import WeakSet

_BUFFERED = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
_opened_early: WeakSet[io.IOBase] = WeakSet()
"""Files of plugins: they would not be found among what is frozen."""


@contextmanager
def loading() -> Iterator[None]:
    """The libraries of a command are imported inside; of `run_alone`, which has switched off the garbage collector.

    From the end of the block on garbage is looked for, but never among what there is by then. Where it was looked for
    all along nothing is done: who has other work in the process may want it freed.
    """
    if gc.isenabled():
        yield
        return
    _opened_early.update(_open_files())
    yield
    gc.freeze()
    gc.enable()


def run_alone(main: Callable[[], None]) -> None:
    """Run `main`, all that this process is for, and end the process with what it says, by `SystemExit`.

    At the end everything is done that the interpreter promises: threads joined, exit functions called, garbage
    finalized, open files written. Then no object is taken apart: the system frees them at once. Must come before
    anything registers an exit function, as the one registered first is called last.
    """
    gc.disable()
    code = 1  # of an error that nobody expected

    def leave() -> None:
        gc.collect()
        for file in (*_opened_early, *_open_files()):
            with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
                file.flush()
        ctypes.CDLL(None).fflush(None)  # what libraries written in C have printed
        os._exit(code)

    atexit.register(leave)
    try:
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    code = 0


def _open_files() -> list[io.IOBase]:
    return [thing for thing in gc.get_objects() if type(thing) in _BUFFERED]
