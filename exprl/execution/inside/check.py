"""The test program's side: it runs here, and the candidate's function is a line to another sandbox."""

import builtins
import contextlib
import os
from typing import Any

from . import values
from .faults import UnsendableError, fault

LONGEST_REPLY = 2**24


class GoneError(BaseException):
    """The candidate has no more to say. No test catches it by `except Exception`."""


class Candidate:
    """Calls the function in the other sandbox with plain values; gives, or raises, what is plain as well."""

    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = os.fdopen(requests, "wb"), os.fdopen(replies, "rb")
        self.calls = 0
        self.gone = False
        self.unsendable = False
        self.undefined = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns; raises what it raises, `GoneError`, or `UnsendableError`."""
        reply = self._ask({"args": list(args), "kwargs": kwargs})
        if "value" in reply:
            return reply["value"]
        raise exception(reply.get("raised"), reply.get("message"))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            line = values.dump(request)
        except (TypeError, RecursionError):
            self.unsendable = True
            raise UnsendableError from None
        self.calls += 1
        try:
            self.requests.write(line)
            self.requests.flush()
            return self._read()
        except (OSError, GoneError):
            self.gone = True
            raise GoneError from None

    def load(self) -> bool:
        """Whether the program is ready to be called; the test program would else be blamed for what it raises."""
        told = self._read()
        self.undefined = "undefined" in told
        return "loaded" in told

    def _read(self) -> dict[str, Any]:
        line = self.replies.readline(LONGEST_REPLY)
        if not line.endswith(b"\n"):
            raise GoneError
        try:
            return values.load(line)
        except (ValueError, RecursionError):
            raise GoneError from None


def exception(name: Any, message: Any) -> Exception:
    """The built-in exception of that name, or a RuntimeError in its place.

    So it is for those that end a loop instead of the test, in `map`, `zip` or `for` (as in a generator, PEP 479).
    """
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    ends_loops = (StopIteration, StopAsyncIteration)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, ends_loops):
        with contextlib.suppress(TypeError):
            return kind(str(message))
        with contextlib.suppress(TypeError):
            return kind.__new__(kind, str(message))  # UnicodeError's, which want more than a message
    return RuntimeError(str(message))


def check(given: dict[str, str], requests: int, replies: int, verdict: int) -> None:
    """Run the test program to its end, and only then say so. It must have called the candidate."""
    candidate = Candidate(requests, replies)
    try:
        outcome = _run(given, candidate)
    except GoneError:
        outcome = {"passed": False, "undefined": candidate.undefined}
    except BaseException as error:  # noqa: BLE001 - a test program may raise whatever it likes
        broken = fault(error, given, candidate.calls)
        outcome = {"passed": False} if broken is None else {"broken": f"it raises {broken}"}
    if candidate.unsendable:
        outcome = {"broken": "it calls the entry point with what is no plain value, or nested too deep"}
    elif candidate.gone:  # though the test program took no notice
        outcome = {"passed": False}
    os.write(verdict, values.dump(outcome))


def _run(given: dict[str, str], candidate: Candidate) -> dict[str, Any]:
    if not candidate.load():
        raise GoneError
    namespace: dict[str, Any] = {"__name__": "test"}
    with contextlib.suppress(SyntaxError):  # a function without a body
        exec(compile(given["prompt"], "prompt.py", "exec"), namespace)  # its imports and helpers
    namespace[given["entry_point"]] = candidate
    exec(compile(given["test"], "test.py", "exec"), namespace)
    namespace[given["entry_point"]] = candidate
    if callable(namespace.get("check")):
        namespace["check"](candidate)
    if candidate.calls == 0:
        return {"broken": "it ends without a call of the entry point"}
    return {"passed": True}
