"""Whether the kernels' targets are met: on a GPU, at T = 16,384 and V = 151,936 in bf16."""

from __future__ import annotations

from collections.abc import Mapping

from kernel_peers.base import TITLES, Size, Task
from kernel_peers.measure import Measurement
from kernel_peers.variants import Variants
from kernel_peers.worker import Cell, Failure

TOKENS, VOCABULARY = 16_384, 151_936
EXTRA_GIB = 0.7

# (task, D, ms): (a) does not depend on D.
TIMES: list[tuple[Task, int | None, float]] = [
    ("logits", None, 4.2),
    ("linear", 2560, 75.0),
    ("linear", 4096, 115.0),
    ("rkl", 2560, 115.0),
]

# At least as fast as these; within 10 % of Liger's hand-written kernel.
RIVALS = {
    "Liger FLCE": 1.0,
    "Liger selective": 1.0,
    "Liger chunked": 1.0,
    "Liger JSD": 1.0,
    "Liger cross entropy": 1.0,
    "Liger Hopper": 1.1,
    "CCE": 1.0,
    "CCE exact": 1.0,
    "verl Triton": 1.0,
    "verl torch": 1.0,
    "torch.compile": 1.0,
}

Results = Mapping[Cell, Measurement | Failure]


def judge(results: Results, variants: Variants | Failure | None, device: str) -> list[str]:
    """One line a target: met, missed or not measured, with the numbers."""
    if device != "cuda":
        return ["- not measured: they are about a GPU."]
    lines = []
    for task, hidden, limit in TIMES:
        lines += _times(results, task, hidden, limit)
    return [*lines, _repeatable(results), _variants(variants)]


def _times(results: Results, task: Task, hidden: int | None, limit: float) -> list[str]:
    name = TITLES[task] + ("" if hidden is None else f", D = {hidden:,}")
    size = _size(results, task, hidden)
    ours = None if size is None else results.get(Cell(peer="exprl", task=task, size=size))
    if size is None or not isinstance(ours, Measurement):
        return [f"- not measured: {name}, at most {limit} ms and {EXTRA_GIB} GiB."]
    lines = [
        _line(ours.both_ms <= limit, f"{name}: {ours.both_ms:.1f} ms, at most {limit}"),
        _line((ours.extra_gib or 0.0) <= EXTRA_GIB, f"{name}: {ours.extra_gib:.2f} GiB extra, at most {EXTRA_GIB}"),
    ]
    for rival, factor in RIVALS.items():
        theirs = results.get(Cell(peer=rival, task=task, size=size))
        if isinstance(theirs, Measurement):
            bound = f"at most {theirs.both_ms:.1f} ms of {rival}" + ("" if factor == 1.0 else " and 10 %")
            lines.append(_line(ours.both_ms <= factor * theirs.both_ms, f"{name}: {ours.both_ms:.1f} ms, {bound}"))
    return lines


def _size(results: Results, task: Task, hidden: int | None) -> Size | None:
    sizes = [x.size for x in results if x.task == task]
    fitting = [
        x
        for x in sizes
        if (x.tokens, x.vocabulary, x.dtype) == (TOKENS, VOCABULARY, "bfloat16") and hidden in (None, x.hidden)
    ]
    return fitting[0] if fitting else None


def _repeatable(results: Results) -> str:
    ours = {cell: x for cell, x in results.items() if cell.peer == "exprl" and isinstance(x, Measurement)}
    if not ours:
        return "- not measured: the same bits again."
    different = [f"{cell.task} T={cell.size.tokens} D={cell.size.hidden}" for cell, x in ours.items() if not x.repeats]
    text = f"the same bits again in {len(ours) - len(different)} of {len(ours)} cells"
    return _line(not different, f"{text}; not in {', '.join(different)}" if different else text)


def _variants(variants: Variants | Failure | None) -> str:
    if not isinstance(variants, Variants):
        return f"- not measured: no compilation from 1K to 32K tokens. {variants.detail if variants else ''}"
    counts = ", ".join(f"{t:,}: {n}" for t, n in zip(variants.lengths, variants.counts, strict=True))
    return _line(variants.constant, f"no compilation from length to length; variants after each: {counts}")


def _line(met: bool, text: str) -> str:
    return f"- {'met' if met else '**missed**'}: {text.strip()}."
