"""The tables, as Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field

from kernel_peers import ADAPTERS, PEERS, TITLES
from kernel_peers.base import Adapter, Size, Task
from kernel_peers.measure import Measurement
from kernel_peers.targets import judge
from kernel_peers.variants import Variants
from kernel_peers.worker import Cell, Failure

Result = Measurement | Failure

COLUMNS = {
    "forward ms": "---:",
    "backward ms": "---:",
    "both ms": "---:",
    "% of the limit": "---:",
    "extra GiB": "---:",
    "max error": "---:",
    "entropy error": "---:",
    "dH error": "---:",
    "dW error": "---:",
    "same bits again": "---",
    "": "---",
}

ABOUT = """`% of the limit` is the time of the bare products (of the bare traffic, for (a)) over this time: at 100
there is nothing but the products. `extra GiB` is the peak of allocated memory beyond inputs and gradients. `max error`
is the largest absolute error of log-probs (divergences, losses), `entropy error` of entropies; `dH error` and `dW
error` are relative, in the Frobenius norm, of the gradients of hidden states (logits, log-probs) at up to 256 tokens
and of the weight at up to 512 vocabulary rows. Exact values: fp32 products of the same inputs, the rest in fp64. The
gradient that arrives differs from token to token, except for peers that give only a mean. Times are medians, with the
L2 cache flushed before each call; forward means with a graph for the backward pass."""


@dataclass
class Report:
    """Results as they come in."""

    title: str
    machine: str
    sizes: list[Size]
    tasks: list[Task]
    peers: list[str]
    device: str
    results: dict[Cell, Result] = field(default_factory=dict)
    variants: Variants | Failure | None = None

    def cells(self) -> list[Cell]:
        """All there are, in the order they are measured; (a) and (c) do not depend on D and are measured once."""
        found = []
        for size in self.sizes:
            for task in self.tasks:
                first = next(x for x in self.sizes if x.tokens == size.tokens)
                if task in ("logits", "policy") and size != first:
                    continue
                found += [Cell(peer=x.peer, task=task, size=size) for x in self._adapters(task)]
        return found

    def markdown(self) -> str:
        """Everything so far."""
        parts = [f"# {self.title}\n", self.machine, "## Forward and backward together, ms\n", self._summary()]
        parts += [
            "\n## Targets\n\n" + "\n".join(judge(self.results, self.variants, self.device)),
            "\n## Every number\n",
            ABOUT,
        ]
        notes: list[str] = []
        for task in self.tasks:
            for size in self.sizes:
                cells = [x for x in self.cells() if (x.task, x.size) == (task, size)]
                if cells:
                    parts.append(self._table(task, size, cells, notes))
        if notes:
            parts.append("\n## Why a cell is empty\n\n" + "\n".join(notes))
        return "\n".join(parts) + "\n"

    def line(self, cell: Cell) -> str:
        """One result in one line, for the terminal."""
        size, result = cell.size, self.results[cell]
        where = f"{cell.task} T={size.tokens} D={size.hidden} {cell.peer}"
        if isinstance(result, Failure):
            return f"{where}: {result.short} {result.detail[:100]}"
        extra = "" if result.extra_gib is None else f", {result.extra_gib:.2f} GiB"
        return (
            f"{where}: {result.forward_ms:.2f} + {result.backward_ms:.2f} = {result.both_ms:.2f} ms{extra}, errors "
            f"{_error(result.value_error)} {_error(result.entropy_error)} {_error(result.input_error)} "
            f"{_error(result.weight_error)}, same bits {result.repeats}"
        )

    def _adapters(self, task: Task) -> list[Adapter]:
        return [x for x in ADAPTERS if x.task == task and x.peer in self.peers]

    def _summary(self) -> str:
        peers = [x for x in PEERS if x in self.peers]
        lines = ["| task | T | D | " + " | ".join(peers) + " |", "|---|---:|---:|" + "---:|" * len(peers)]
        for task, size in dict.fromkeys((x.task, x.size) for x in self.cells()):
            times = [self._time(Cell(peer=x, task=task, size=size)) for x in peers]
            lines.append(f"| {TITLES[task]} | {size.tokens:,} | {_hidden(task, size)} | " + " | ".join(times) + " |")
        return "\n".join(lines)

    def _time(self, cell: Cell) -> str:
        if cell not in self.cells():
            return ""
        result = self.results.get(cell)
        if result is None:
            return "…"
        return result.short if isinstance(result, Failure) else f"{result.both_ms:.2f}"

    def _table(self, task: Task, size: Size, cells: list[Cell], notes: list[str]) -> str:
        width = "" if task in ("logits", "policy") else f", D = {size.hidden:,}"
        lines = [
            f"\n### {TITLES[task]}: T = {size.tokens:,}{width}\n",
            "| | " + " | ".join(COLUMNS) + " |",
            "|---|" + "|".join(COLUMNS.values()) + "|",
        ]
        limits = [self.results.get(x) for x in cells if self._adapter(x).limit]
        limit = next((x.both_ms for x in limits if isinstance(x, Measurement)), None)
        for cell in cells:
            row = self._row(cell, limit, notes)
            lines.append(f"| {cell.peer} | " + " | ".join(row) + " |")
        return "\n".join(lines)

    def _row(self, cell: Cell, limit: float | None, notes: list[str]) -> list[str]:
        result = self.results.get(cell)
        note = self._adapter(cell).note
        empty = [""] * (len(COLUMNS) - 1)
        if result is None:
            return [*empty, "not reached yet"]
        if isinstance(result, Failure):
            return [*empty, result.short + _footnote(cell, result, notes)]
        share = "" if limit is None else f"{100 * limit / result.both_ms:.0f}"
        return [
            f"{result.forward_ms:.2f}",
            f"{result.backward_ms:.2f}",
            f"{result.both_ms:.2f}",
            share,
            "" if result.extra_gib is None else f"{result.extra_gib:.2f}",
            _error(result.value_error),
            _error(result.entropy_error),
            _error(result.input_error),
            _error(result.weight_error),
            {True: "yes", False: "no", None: ""}[result.repeats],
            note,
        ]

    def _adapter(self, cell: Cell) -> Adapter:
        return next(x for x in ADAPTERS if (x.peer, x.task) == (cell.peer, cell.task))


def _hidden(task: Task, size: Size) -> str:
    return "" if task in ("logits", "policy") else f"{size.hidden:,}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _footnote(cell: Cell, failure: Failure, notes: list[str]) -> str:
    """The number of the note that explains a failure; equal ones of a peer share it."""
    if not failure.detail:
        return ""
    text = f"{cell.peer}: {failure.detail}"
    known = [note.partition(". ")[2] for note in notes]
    if text not in known:
        notes.append(f"{len(notes) + 1}. {text}")
        known.append(text)
    return f" ({known.index(text) + 1})"
