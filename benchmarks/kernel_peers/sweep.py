"""Times exprl's row kernels for every block size and number of warps, to fill `exprl/kernels/fused/launch.py`."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from kernel_peers.measure import L2_BYTES

BLOCKS, WARPS, VOCAB_BLOCKS = (1024, 2048, 4096, 8192), (4, 8, 16), (2048, 4096, 8192)

Write = Callable[[str], None]
Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way in which the row kernels are used; `dtype` is what they read, `width` the columns of a launch."""

    name: str
    dtype: torch.dtype
    width: int
    divergence: str | None = None


def run_sweep(tokens: int, vocabulary: int, hidden: list[int], device: torch.device, write: Write) -> None:
    """Write one table a case as it is finished, then products and whole calls for each `vocab_block`.

    Args:
        tokens: T.
        vocabulary: V.
        hidden: every D.
        device: a GPU, or a CPU under TRITON_INTERPRET=1 to try the program.
        write: takes Markdown.
    """
    widths = list(dict.fromkeys(min(x, vocabulary) for x in VOCAB_BLOCKS))
    write(f"# Row kernels at T = {tokens:,}, V = {vocabulary:,}\n")
    write("ms for the whole vocabulary, and GB/s of what a kernel reads and writes; the least of a column is bold.")
    for case in _cases(vocabulary, widths):
        _table(case, tokens, vocabulary, device, write)
    for d in hidden:
        _slices(tokens, vocabulary, d, widths, device, write)


def _cases(vocabulary: int, widths: list[int]) -> list[Case]:
    one = [Case(name=f"One head, fp32 slices of {x:,}", dtype=torch.float32, width=x) for x in widths]
    two = [
        Case(name=f"Two heads with {kind}, fp32 slices of {x:,}", dtype=torch.float32, width=x, divergence=kind)
        # The other two differ from rkl in arithmetic alone.
        for kind, sizes in (("rkl", widths), ("fkl", widths[:1]), ("jsd", widths[:1]))
        for x in sizes
    ]
    return [*one, *two, Case(name="Given bf16 logits", dtype=torch.bfloat16, width=vocabulary)]


def _table(case: Case, tokens: int, vocabulary: int, device: torch.device, write: Write) -> None:
    calls, traffic = _kernels(case, tokens, device)
    launches = vocabulary / case.width
    rows: dict[tuple[int, int], list[float]] = {}
    for block, warps in itertools.product(BLOCKS, WARPS):
        try:
            with _launched_with(block, warps):
                ms = [launches * _milliseconds(call, device) for call in calls.values()]
        except Exception as error:  # noqa: BLE001 - a configuration that cannot run is a line, not the end
            print(f"{case.name}, block {block}, {warps} warps: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        rows[block, warps] = [*ms, sum(ms)]
    write(f"\n## {case.name}\n")
    if not rows:
        write("Nothing ran.")
        return
    write("| block | warps | " + " | ".join(f"{x} ms | GB/s" for x in calls) + " | together ms |")
    write("|---:|---:|" + "---:|---:|" * len(calls) + "---:|")
    best = [min(column) for column in zip(*rows.values(), strict=True)]
    for (block, warps), row in rows.items():
        cells = [f"**{x:.2f}**" if x == least else f"{x:.2f}" for x, least in zip(row, best, strict=True)]
        rates = [f"{launches * traffic[name] / ms / 1e6:,.0f}" for name, ms in zip(calls, row, strict=False)]
        pairs = [x for pair in zip(cells, rates, strict=False) for x in pair]
        write(f"| {block} | {warps} | " + " | ".join([*pairs, cells[-1]]) + " |")


def _kernels(case: Case, tokens: int, device: torch.device) -> tuple[Calls, dict[str, int]]:
    """One launch of each kernel, and the bytes it reads and writes."""
    from exprl.kernels.fused import TRITON
    from exprl.kernels.rows import FIELDS, GradientCoefficients, Tokens

    def numbers() -> Tensor:
        return torch.randn(tokens, device=device)

    def logits() -> Tensor:
        return torch.randn(tokens, case.width, device=device, dtype=case.dtype)

    two = case.divergence is not None
    ids = torch.randint(case.width, (tokens,), device=device)
    fixed = Tokens(ids=ids, inverse_temperature=torch.ones(tokens, device=device))
    state = torch.zeros(FIELDS, tokens, device=device)
    state[0] = state[4] = -torch.inf
    sums = torch.zeros(2, tokens, device=device)
    z, z_frozen = logits(), logits() if two else None
    out = torch.empty(tokens, case.width, device=device, dtype=torch.bfloat16)
    lse = torch.full((tokens,), 9.0, device=device)
    k = GradientCoefficients(
        lse=lse, frozen_lse=lse if two else None, a=numbers(), b=numbers(), g=numbers(), d=numbers() if two else None
    )
    read = z.nbytes * (2 if two else 1)
    calls: Calls = {
        "merge": lambda: TRITON.merge(state, z, z_frozen, 0, fixed, entropy=True, divergence=case.divergence),
        "gradient": lambda: TRITON.gradient(out, z, z_frozen, 0, fixed, k, divergence=case.divergence),
    }
    if case.divergence == "jsd":
        calls["merge_jsd"] = lambda: TRITON.merge_jsd(sums, z, z_frozen, fixed, lse, lse)
    return calls, {"merge": read, "gradient": read + out.nbytes, "merge_jsd": read}


@contextmanager
def _launched_with(block: int, warps: int) -> Iterator[None]:
    from exprl.kernels.fused import operations
    from exprl.kernels.fused.launch import Launch

    table = operations.launch_for
    operations.launch_for = lambda *_, **__: Launch(block=block, num_warps=warps)
    try:
        yield
    finally:
        operations.launch_for = table


def _slices(tokens: int, vocabulary: int, hidden: int, widths: list[int], device: torch.device, write: Write) -> None:
    """Where the time of a whole call goes, for each width of a slice."""
    from exprl.kernels import linear_logprob

    h, w = torch.randn(tokens, hidden, device=device), torch.randn(vocabulary, hidden, device=device) * hidden**-0.5
    h, w = (x.to(torch.bfloat16).requires_grad_() for x in (h, w))
    ids = torch.randint(vocabulary, (tokens,), device=device)
    frozen = (h.detach().clone(), w.detach().clone())

    def call(width: int, **options: object) -> None:
        result = linear_logprob(h, w, ids, vocab_block=width, **options)
        chosen = [x for x in (result.logp, result.entropy, result.divergence) if x is not None]
        torch.autograd.grad(chosen, (h, w), [torch.ones_like(x) for x in chosen])

    write(f"\n## D = {hidden:,}: products alone and whole calls, forward and backward, ms\n")
    write("| slice | products of one head | linear_logprob | and rkl to a second head |\n|---:|---:|---:|---:|")
    for width in widths:
        calls: list[Callable[[], object]] = [
            lambda width=width: _products(h.detach(), w.detach(), width),
            lambda width=width: call(width),
            lambda width=width: call(width, frozen=frozen, divergence="rkl"),
        ]
        write(f"| {width:,} | " + " | ".join(f"{_milliseconds(x, device):.2f}" for x in calls) + " |")


def _products(hidden: Tensor, weight: Tensor, width: int) -> None:
    """The products of a call as exprl makes them, without row kernels: what slicing itself costs."""
    from exprl.kernels.products import add_product, fp32_products, write_product

    z = torch.empty(len(hidden), width, device=hidden.device)
    dz = hidden.new_full(z.shape, 1e-4)
    d_hidden = torch.zeros_like(hidden, dtype=torch.float32)
    d_weight = torch.empty_like(weight)
    with fp32_products(hidden.device):
        for backward in (False, True):
            for first in range(0, len(weight), width):
                rows = weight[first : first + width]
                write_product(z[:, : len(rows)], hidden, rows.t())
                if backward:
                    add_product(d_hidden, dz[:, : len(rows)], rows)
                    write_product(d_weight[first : first + width], dz[:, : len(rows)].t(), hidden)


def _milliseconds(call: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """Median, with the L2 cache flushed before each call; the first call, which compiles, is not counted."""
    call()
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)
    cache = torch.empty(L2_BYTES // 4, dtype=torch.int32, device=device)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start_event, end_event in pairs:
        cache.zero_()
        start_event.record()
        call()
        end_event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairs)
