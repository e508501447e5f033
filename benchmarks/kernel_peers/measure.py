"""One cell: milliseconds, memory, error, and whether a second call gives the same bits."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from kernel_peers.base import Adapter, Forward, Outputs, Problem
from kernel_peers.exact import Exact

GIB = 2**30
L2_BYTES = 256 * 10**6
"""Written before every timed call, as `triton.testing.do_bench` does: nothing is still in the cache."""

SECONDS = 6.0
"""About what a cell's timed calls may take, if there are more than three."""


@dataclass(frozen=True)
class Measurement:
    """Times are medians in ms. `extra_gib` is the peak beyond inputs and gradients, None on a CPU.

    Errors against `Exact`: of log-probs, divergences, the policy's loss or a mean the largest absolute one
    (`value_error`), likewise of entropies; of gradients the relative one in the Frobenius norm. None where the peer has
    no such result.
    """

    forward_ms: float
    backward_ms: float
    both_ms: float
    extra_gib: float | None
    value_error: float | None = None
    entropy_error: float | None = None
    input_error: float | None = None
    weight_error: float | None = None
    repeats: bool | None = None


def measure(adapter: Adapter, problem: Problem, exact: Exact | None, repeats: int) -> Measurement:
    """Run an adapter: to compile, to compare, to count memory, to time."""
    calls = _Calls(adapter, problem)
    calls.both()  # compiles
    outputs, gradients = calls.both()
    errors = {} if adapter.limit or exact is None else _errors(outputs, gradients, exact)
    again = calls.both()
    same = all(torch.equal(a, b) for a, b in zip(_all(outputs, gradients), _all(*again), strict=True))
    del outputs, gradients, again
    extra = _extra_gib(calls)
    forward, backward, both = _times(calls, repeats)
    return Measurement(
        forward_ms=forward,
        backward_ms=backward,
        both_ms=both,
        extra_gib=extra,
        repeats=None if adapter.limit else same,
        **errors,
    )


class _Calls:
    def __init__(self, adapter: Adapter, problem: Problem) -> None:
        self.problem = problem
        self.gpu = problem.device.type == "cuda"
        self._forward: Forward = adapter.load()
        self._originals = [x.detach().clone() for x in problem.inputs] if adapter.overwrites else []

    def prepare(self) -> None:
        """What is not timed: put back inputs that a call has overwritten."""
        for x, original in zip(self.problem.inputs, self._originals, strict=False):
            x.detach().copy_(original)

    def forward(self) -> Outputs:
        return self._forward(self.problem)

    def backward(self, outputs: Outputs) -> tuple[Tensor, ...]:
        pairs = [(out, up) for out, up in zip(outputs, self.problem.upstream, strict=True) if out is not None]
        upstream = [up.to(out.dtype) for out, up in pairs]
        return torch.autograd.grad([out for out, _ in pairs], self.problem.inputs, upstream)

    def both(self) -> tuple[Outputs, tuple[Tensor, ...]]:
        self.prepare()
        outputs = self.forward()
        gradients = self.backward(outputs)
        self.synchronize()
        return Outputs(*(None if x is None else x.detach() for x in outputs)), gradients

    def synchronize(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()


def _all(outputs: Outputs, gradients: tuple[Tensor, ...]) -> list[Tensor]:
    return [x for x in outputs if x is not None] + list(gradients)


def _errors(outputs: Outputs, gradients: tuple[Tensor, ...], exact: Exact) -> dict[str, float]:
    errors: dict[str, float] = {}
    for name, out, true in zip(Outputs._fields, outputs, exact.outputs, strict=True):
        if out is not None:
            error = (out.double() - true).abs().max().item()
            key = "entropy_error" if name == "entropy" else "value_error"
            errors[key] = max(error, errors.get(key, 0.0))
    true_gradients = exact.gradients[outputs.kind]
    errors["input_error"] = _relative(gradients[0][exact.rows], true_gradients.rows)
    if true_gradients.columns is not None:
        errors["weight_error"] = _relative(gradients[1][exact.columns], true_gradients.columns)
    return errors


def _relative(found: Tensor, true: Tensor) -> float:
    return ((found.double() - true).norm() / true.norm()).item()


def _extra_gib(calls: _Calls) -> float | None:
    if not calls.gpu:
        return None
    calls.prepare()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _, gradients = calls.both()
    peak = torch.cuda.max_memory_allocated()
    return (peak - before - sum(x.nbytes for x in gradients)) / GIB


def _times(calls: _Calls, repeats: int) -> tuple[float, float, float]:
    """Medians of forward, backward and the two together. As in `do_bench` nothing waits for the GPU in between."""
    start = time.perf_counter()
    calls.both()
    fitting = int(SECONDS / (time.perf_counter() - start))
    clock = _GpuClock() if calls.gpu else _CpuClock()
    for _ in range(min(repeats, max(fitting, 3))):
        calls.prepare()
        clock.start()
        outputs = calls.forward()
        clock.lap()
        gradients = calls.backward(outputs)
        clock.lap()
        del outputs, gradients
    rows = clock.read()
    forward, backward = (statistics.median(x) for x in zip(*rows, strict=True))
    return forward, backward, statistics.median(sum(x) for x in rows)


class _CpuClock:
    def __init__(self) -> None:
        self._marks: list[list[float]] = []

    def start(self) -> None:
        self._marks.append([])
        self.lap()

    def lap(self) -> None:
        self._marks[-1].append(1000 * time.perf_counter())

    def read(self) -> list[tuple[float, float]]:
        return [(b - a, c - b) for a, b, c in self._marks]


class _GpuClock:
    def __init__(self) -> None:
        self._cache = torch.empty(L2_BYTES // 4, dtype=torch.int32, device="cuda")
        self._marks: list[list[torch.cuda.Event]] = []

    def start(self) -> None:
        self._cache.zero_()
        self._marks.append([])
        self.lap()

    def lap(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks[-1].append(event)

    def read(self) -> list[tuple[float, float]]:
        torch.cuda.synchronize()
        return [(a.elapsed_time(b), b.elapsed_time(c)) for a, b, c in self._marks]
