"""What a transfer consists of, which is the same at every transfer of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exprl.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """One tensor: a small update may change log-probs by less than a canary hears, so a missing one must show here."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} {self.dtype}"


def checked(
    weights: Iterable[tuple[str, Tensor]], before: tuple[Entry, ...] | None, seen: list[Entry]
) -> Iterator[tuple[str, Tensor]]:
    """`weights`, whose entries are added to `seen` and must be those of the transfer `before`, in its order.

    Raises:
        EngineError: they are not; the message names the first that differs.
    """
    for name, tensor in weights:
        entry = Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        _compare(entry, before, len(seen))
        seen.append(entry)
        yield name, tensor
    _compare(None, before, len(seen))


def _compare(entry: Entry | None, before: tuple[Entry, ...] | None, place: int) -> None:
    if before is None:
        return
    expected = before[place] if place < len(before) else None
    if entry != expected:
        raise EngineError(
            f"the policy's weights are not the tensors they were: {entry or 'the end'} comes where the transfer before "
            f"had {expected or 'its end'}. The servers stay paused; a tensor was left out, added or transposed."
        )
