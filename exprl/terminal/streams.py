"""Standard streams that end no run: output that cannot be written is dropped, whoever writes it.

Libraries print too (progress bars, warnings, logs), so the streams themselves are made safe, once, by the command line.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import sys
import traceback
from types import TracebackType
from typing import Any, TextIO

from exprl.errors import ExprlError

READER_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""A closed pipe, a terminal that went, a stream that was never open: nobody misses the output."""


class OutputError(ExprlError):
    """What a command was asked to print could not be written."""


class _Unbreakable(io.FileIO):
    """Drops what cannot be written, and remembers why."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        while True:
            try:
                written = super().write(data)
            except OSError as error:
                self.error = self.error or error
                return len(data)
            if written is not None:
                return written
            select.select([], [self.fileno()], [])  # a stream that does not block is full


def guard() -> None:
    """Make the standard streams safe, for this process: open, in any encoding, with a reader or without."""
    _keep_open()
    sys.stdout = _guarded(sys.stdout, 1)
    sys.stderr = _guarded(sys.stderr, 2)
    sys.excepthook = _show_exception
    logging.setLogRecordFactory(_visible_record)


def check_written() -> None:
    """Raise `OutputError` if standard output lost something that somebody waits for, as on a full disk."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Unbreakable) and raw.error is not None and raw.error.errno not in READER_GONE:
        raise OutputError(f"standard output: not all of it could be written ({raw.error.strerror}).")


def _keep_open() -> None:
    """A closed descriptor 0, 1 or 2 would be taken by the next file opened, into which others would then print."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free


def _guarded(stream: TextIO | None, descriptor: int) -> TextIO:
    old: Any = stream
    if old is not None:
        old.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Unbreakable(descriptor, "w", closefd=False)),
        encoding=getattr(old, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=getattr(old, "line_buffering", True),
        write_through=getattr(old, "write_through", False),
    )


def _show_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from exprl.terminal.console import visible  # rich is imported only when there is something to show

    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))


_make_record = logging.getLogRecordFactory()


def _visible_record(*args: Any, **options: Any) -> logging.LogRecord:
    """Log lines of every library: they quote names and texts from outside."""
    from exprl.terminal.console import visible

    record = _make_record(*args, **options)
    try:
        message = record.getMessage()
    except (
        TypeError,
        ValueError,
        KeyError,
    ):  # a message that does not fit its arguments is reported where it is written
        return record
    record.msg, record.args = visible(message), ()
    return record
