"""The test program's side: it runs here, and the candidate's function is a line to another sandbox."""

import builtins
import contextlib
import os
from typing import Any

from . import values

LONGEST_REPLY = 2**24


class GoneError(BaseException):
    """The candidate has no more to say. No test catches it by `except Exception`."""


class Candidate:
    """Calls the function in the other sandbox with plain values; gives, or raises, what is plain as well."""

    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = os.fdopen(requests, "wb"), os.fdopen(replies, "rb")
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns; raises what it raises, or `GoneError`."""
        self.calls += 1
        try:
            self.requests.write(values.dump({"args": list(args), "kwargs": kwargs}))
            self.requests.flush()
        except OSError:
            raise GoneError from None
        reply = self._read()
        if "value" in reply:
            return reply["value"]
        raise exception(reply.get("raised"), reply.get("message"))

    def load(self) -> bool:
        """Whether the program is ready to be called; the test program would else be blamed for what it raises."""
        return "loaded" in self._read()

    def _read(self) -> dict[str, Any]:
        line = self.replies.readline(LONGEST_REPLY)
        if not line.endswith(b"\n"):
            raise GoneError
        try:
            return values.load(line)
        except (ValueError, RecursionError):
            raise GoneError from None


def exception(name: Any, message: Any) -> Exception:
    """The built-in exception of that name, or a RuntimeError in its place."""
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):
            return kind(str(message))
    return RuntimeError(str(message))


def check(given: dict[str, str], requests: int, replies: int, verdict: int) -> None:
    """Run the test program to its end, and only then say so. It must have called the candidate."""
    candidate = Candidate(requests, replies)
    try:
        outcome = _run(given, candidate)
    except BaseException as error:  # noqa: BLE001 - a test program may raise whatever it likes
        broken = candidate.calls == 0 and not isinstance(error, GoneError)
        outcome = {"broken": f"{type(error).__name__}: {error}"[:200]} if broken else {"passed": False}
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
        return {"broken": "the test program ends without a call of the entry point"}
    return {"passed": True}
