"""Steps of sampling on a GPU, recorded once and replayed: a CUDA graph in place of hundreds of launches.

A step of a small model keeps the GPU busy for a tenth of the time that its launches take (`benchmarks/results/gpu/`).
A recording reads and writes the memory it was made with, so whatever replaces that memory makes another one necessary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exprl.errors import one_line
from exprl.models.merged import MergedModel
from exprl.models.steps import Merged, MergedSteps, bias_of, step

log = logging.getLogger(__name__)

Compute = Callable[[], Tensor]
Recorder = Callable[[Compute], Compute]
"""From what computes a tensor by kernels alone to what runs these once more, in the same memory."""

_TOLERANCE = 1e-3  # of the largest logit


def recording(compute: Compute) -> Compute:
    """`compute` as a CUDA graph; it has run on this device before."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a graph is never recorded on the default one
        graph.capture_begin(capture_error_mode="thread_local")  # other threads may use the GPU meanwhile
        try:
            result = compute()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a recording reads at each step, and what it was made for.

    Attributes:
        model: the weights.
        keys: [layers, B, G, D, M].
        values: [layers, B, G, M, D].
        tokens: [B, 1].
        positions: [B, 1].
        place: [1], of the new token in the M positions.
        seen: [B, M] bool, the positions that count.
    """

    model: MergedModel
    keys: Tensor
    values: Tensor
    tokens: Tensor
    positions: Tensor
    place: Tensor
    seen: Tensor

    @classmethod
    def of(cls, model: MergedModel, keys: Tensor, values: Tensor, tokens: Tensor) -> Frame:
        """Where nothing counts yet."""
        return cls(
            model=model,
            keys=keys,
            values=values,
            tokens=torch.zeros_like(tokens),
            positions=torch.zeros_like(tokens),
            place=torch.zeros(1, dtype=torch.int64, device=tokens.device),
            seen=torch.zeros(len(tokens), keys.shape[-1], dtype=torch.bool, device=tokens.device),
        )

    def fill(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, end: int) -> None:
        """The next step: `mask` [B, end], or all of it."""
        self.tokens.copy_(tokens)
        self.positions.copy_(positions)
        self.place.fill_(end - 1)
        self.seen[:, :end] = True if mask is None else mask

    def compute(self) -> Tensor:
        """Logits [B, V]."""
        bias = bias_of(self.seen, self.keys.shape[2])
        return step(self.model, self.tokens, self.positions, self.keys, self.values, bias, self.place)


class RecordedSteps(MergedSteps):
    """`MergedSteps` that are recorded; logits are overwritten by the next step.

    The first recording with these weights is compared with what it recorded. Where the two differ, or none can be made,
    steps go on unrecorded, which the log says.

    Args:
        merged: the weights.
        cache: a model's own, which `takes_rows`; copied.
        record: makes a recording.
    """

    compact_at = 0.5  # another number of rows is another recording

    def __init__(self, merged: Merged, cache: Any, record: Recorder = recording) -> None:
        super().__init__(merged, cache)
        self._record = record
        self._frame: Frame | None = None
        self._replay: Compute | None = None

    def advance(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """See `Steps`."""
        if self._merged.recordable is False:
            return super().advance(tokens, positions, mask)
        frame, end = self._frame_for(tokens), self._length
        frame.fill(tokens, positions, mask, end)
        if self._replay is not None:
            return self._replay()
        logits = frame.compute()  # what a library prepares at its first call is no part of the recording
        self._begin(frame, logits)
        return logits

    def _frame_for(self, tokens: Tensor) -> Frame:
        """For one position more; a new one, yet to be recorded, where weights or memory are others than before."""
        self._extend()
        frame = self._frame
        if frame is None or self._merged.stale or frame.keys is not self._keys or frame.values is not self._values:
            self._frame = self._replay = None  # with the memory they hold, before there are others
            self._frame = frame = Frame.of(self._merged.current(), self._keys, self._values, tokens)
        return frame

    def _begin(self, frame: Frame, expected: Tensor) -> None:
        try:
            self._replay = self._record(frame.compute)
            if self._merged.recordable is None:
                self._merged.recordable = _agree(self._replay(), expected)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._merged.recordable = False
            _give_up(one_line(error))
        if not self._merged.recordable:
            self._replay = None


def _agree(found: Tensor, expected: Tensor) -> bool:
    agree = bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())
    if not agree:
        _give_up("a replay gave other logits")
    return agree


def _give_up(why: str) -> None:
    log.warning("steps of sampling are not recorded as CUDA graphs: %s", why)
