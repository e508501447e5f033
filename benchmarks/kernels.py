"""exprl.kernels beside its peers: time, memory, error and repeatability of every function, as Markdown tables.

    python benchmarks/kernels.py --markdown benchmarks/results/kernels.md      on a GPU, everything
    python benchmarks/kernels.py --only exprl "bare GEMMs" --tasks linear      a part of it
    python benchmarks/kernels.py --sweep                                       block sizes for fused/launch.py
    python benchmarks/kernels.py --device cpu --tokens 64 --vocabulary 517 --hidden 48 --repeats 1
                                                                               try the program without a GPU

Tasks: logits (a: log-prob and entropy from logits), linear (b: from hidden states and the LM head), rkl, fkl, jsd (d:
divergence of two heads), policy (c: the policy loss). Every cell is measured in a second process; a peer that is
absent, fails, hangs or breaks the GPU costs its own cell and is named below the tables. Peers that are not installed
can be on PYTHONPATH as unpacked wheels. Results are written to --markdown after every cell, and when --budget-seconds
are over the remaining cells are left out: give a little less than what the machine is lent for. The exit status is then
75, and the next call with the same --keep goes on after the last table that was whole.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args

import torch

ROOT = Path(__file__).parents[1]
# First: on the machine with the GPU exprl is a folder, not installed, and a peer's wheel may bring a folder `tests`.
sys.path.insert(0, str(ROOT))

from gpu_findings import digest  # noqa: E402
from gpu_stages import UNFINISHED  # noqa: E402
from kernel_peers import PEERS, Size, Task, kept  # noqa: E402
from kernel_peers.measure import Measurement  # noqa: E402
from kernel_peers.report import Report  # noqa: E402
from kernel_peers.sweep import run_sweep  # noqa: E402
from kernel_peers.variants import Variants  # noqa: E402
from kernel_peers.worker import NO_TIME, CountVariants, Failure, Worker  # noqa: E402
from measuring import leave  # noqa: E402

PACKAGES = ("triton", "liger-kernel", "trl", "cut-cross-entropy", "verl", "quack-kernels", "nvidia-cutlass-dsl")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; checked, with --only resolved to names of peers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384, 4096, 32768], help="T, in this order")
    parser.add_argument("--hidden", type=int, nargs="+", default=[2560, 4096], help="D")
    parser.add_argument("--vocabulary", type=int, default=151936, help="V (default: Qwen3's 151,936)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of all inputs")
    parser.add_argument("--tasks", nargs="+", default=list(get_args(Task)), choices=get_args(Task), metavar="TASK")
    parser.add_argument("--only", nargs="+", metavar="PEER", help=f"any of: {', '.join(PEERS)}")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls a cell; fewer of slow ones")
    parser.add_argument("--device", default=device, choices=["cuda", "cpu"])
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), help="leave out what comes after them")
    parser.add_argument("--cell-seconds", type=float, default=120.0, help="give a cell up after them, with compiling")
    parser.add_argument("--markdown", type=Path, help="write the tables here after every cell")
    parser.add_argument("--keep", type=Path, help="keep whole tables in this file, and go on after those in it")
    parser.add_argument("--sweep", action="store_true", help="time the row kernels for every block and warps instead")
    options = parser.parse_args(arguments)
    wanted = {x.casefold() for x in options.only or PEERS}
    options.peers = [x for x in PEERS if x.casefold() in wanted]
    unknown = wanted - {x.casefold() for x in PEERS}
    if unknown:
        parser.error(f"--only: no peer {', '.join(sorted(unknown))}; there are: {', '.join(PEERS)}")
    return options


def main() -> int:
    """The exit status: `UNFINISHED` where the budget ended before the last cell."""
    options = parse()
    if options.sweep:
        sweep(options)
        return 0
    start = time.perf_counter()
    sizes = [
        Size(tokens=t, hidden=d, vocabulary=options.vocabulary, dtype=options.dtype)
        for t in options.tokens
        for d in options.hidden
    ]
    report = Report(
        title=f"Kernels at V = {options.vocabulary:,} in {options.dtype}",
        machine=machine(options.device),
        sizes=sizes,
        tasks=options.tasks,
        peers=options.peers,
        device=options.device,
        results=kept.read(options.keep, about(options)) if options.keep else {},
    )
    worker = Worker(options.device, options.repeats)
    try:
        measure_all(report, worker, options, start)
    finally:
        worker.close()
        write(report, options.markdown)
    print(report.markdown())
    return UNFINISHED if NO_TIME in report.results.values() else 0


def measure_all(report: Report, worker: Worker, options: argparse.Namespace, start: float) -> None:
    """Ask the worker cell by cell, until the budget is spent."""

    def left() -> float:
        return options.budget_seconds - (time.perf_counter() - start)

    if options.device == "cuda" and "exprl" in options.peers:
        answer = worker.ask(CountVariants(options.vocabulary), options.cell_seconds, left())
        report.variants = answer if isinstance(answer, Variants | Failure) else None
        print(f"variants: {report.variants}", file=sys.stderr)
    measured_on = about(options) if options.keep else ""
    given_up = {(cell.peer, cell.task) for cell, result in report.results.items() if hopeless(result)}
    for cell in report.cells():
        if cell in report.results:
            continue
        if left() <= 0:
            report.results[cell] = NO_TIME
            continue
        if (cell.peer, cell.task) in given_up:
            report.results[cell] = Failure("given up", "it was too slow or ended the process at another size")
            continue
        answer = worker.ask(cell, options.cell_seconds, left())
        assert not isinstance(answer, Variants)
        report.results[cell] = answer
        if hopeless(answer):
            given_up.add((cell.peer, cell.task))
        print(f"[{time.perf_counter() - start:.0f} s] {report.line(cell)}", file=sys.stderr, flush=True)
        write(report, options.markdown)
        if options.keep:
            kept.keep(options.keep, measured_on, kept.whole_tables(report.results, report.cells()))


def hopeless(result: Measurement | Failure) -> bool:
    """Whether other sizes of the task would only cost time."""
    return isinstance(result, Failure) and result.short in ("too slow", "crashed")


def about(options: argparse.Namespace) -> str:
    """What kept tables must have been measured on, by which code, and how; which peers and sizes is in the cells."""
    return f"{device_and_packages(options.device)} {options.repeats} repeats, {options.cell_seconds} s, {digest()}"


def write(report: Report, path: Path | None) -> None:
    """Whole or not at all, so that a reader never meets half a table."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(report.markdown())
        part.replace(path)


def sweep(options: argparse.Namespace) -> None:
    """Print the sweep's tables, and write them to --markdown line by line."""
    lines: list[str] = []

    def add(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if options.markdown:
            options.markdown.write_text("\n".join(lines) + "\n")

    add(machine(options.device))
    run_sweep(options.tokens[0], options.vocabulary, options.hidden, torch.device(options.device), add)


def machine(device: str) -> str:
    """What was measured on, and the command."""
    arguments = " ".join(f'"{x}"' if " " in x else x for x in sys.argv[1:])
    return f"{device_and_packages(device)}.\n\n    python benchmarks/kernels.py {arguments}\n"


def device_and_packages(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    found = [f"torch {torch.__version__}", *(f"{x} {installed(x)}" for x in PACKAGES)]
    return f"{name}, {platform.system()}, Python {platform.python_version()}, {', '.join(found)}"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


if __name__ == "__main__":
    leave(main())
