"""What the policy must never see, wrapped."""

from __future__ import annotations

import hashlib
from typing import Any, Generic, NoReturn, TypeVar

T = TypeVar("T")


class Hidden(Generic[T]):
    """A value the policy must never see. Printing, formatting, joining or writing it as JSON never shows it.

    Only `reveal()` gives the value back; judges and verifiers call it, nothing on the policy's side does (but for the
    baselines that train on references, SFT and self-distillation). Pickling keeps it, so that it can pass between
    processes.

    >>> f"{Hidden('the proof')}"
    '<hidden>'
    >>> "Solve: " + Hidden('the proof')
    Traceback (most recent call last):
    TypeError: can only concatenate str (not "Hidden") to str
    """

    __slots__ = ("_value",)
    _value: T

    def __init__(self, value: T) -> None:
        object.__setattr__(self, "_value", value)

    def reveal(self) -> T:
        """The value itself; for the judge's and the verifier's side only."""
        return self._value

    def digest(self) -> str:
        """A hash by which a change is noticed, the same on every machine; the value cannot be read back from it."""
        return hashlib.sha256(repr(self._value).encode("utf-8", "backslashreplace")).hexdigest()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("Hidden is immutable")

    def __repr__(self) -> str:
        return "<hidden>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hidden) and other.reveal() == self.reveal()

    def __hash__(self) -> int:
        return hash(self.reveal())

    def __reduce__(self) -> tuple[Any, ...]:
        return (Hidden, (self.reveal(),))
