"""Peak memory of log-prob and entropy from hidden states on a CPU, against materialised logits.

    python benchmarks/kernels_memory.py > benchmarks/results/kernels_memory.md
    python benchmarks/kernels_memory.py --tokens 256 --vocabulary 20000 --hidden 64       try the program

Every variant runs forward and backward once in a fresh process, one after another. Counted is the peak of the resident
memory during the two passes, less what was resident before (libraries and inputs) and less the gradients themselves. A
variant that would not fit into the memory that is available is left out, with a message.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from kernel_peers import ADAPTERS, Size, Task  # noqa: E402
from kernel_peers.problems import make_problem  # noqa: E402

GIB = 2**30
TARGET = 0.10
MARGIN_GIB = 1.5
"""Left to the rest of the machine."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A peer's function; `copies` is how many [T, V] it may hold at once, to say whether it fits."""

    name: str
    peer: str
    task: Task = "linear"
    dtype: str = "float32"
    copies: float = 0.5
    baseline: bool = False
    """What the variants after it are compared with."""


VARIANTS = [
    Variant(name="materialised logits", peer="torch eager", copies=5.2, baseline=True),
    Variant(name="exprl", peer="exprl"),
    Variant(name="TRL chunked", peer="TRL", copies=2),
    Variant(name="Liger chunked", peer="Liger chunked", copies=2),
    Variant(name="Liger selective, no entropy", peer="Liger selective"),
    Variant(name="F.linear_cross_entropy, no entropy", peer="F.linear_cross_entropy", copies=2),
    # Its baseline is the fp32 one: without bf16 units a CPU takes more than a quarter of an hour for bf16 logits.
    Variant(name="exprl", peer="exprl", dtype="bfloat16"),
    Variant(name="materialised logits, rkl alone", peer="torch eager", task="rkl", copies=5.4, baseline=True),
    Variant(name="exprl, rkl alone", peer="exprl", task="rkl"),
    Variant(name="exprl, rkl with log-prob and entropy", peer="exprl (all in one)", task="rkl"),
    Variant(name="TRL chunked, rkl alone", peer="TRL", task="rkl", copies=3),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="T")
    parser.add_argument("--vocabulary", type=int, default=151936, help="V")
    parser.add_argument("--hidden", type=int, default=512, help="D")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--variant", type=int, help="measure this one here and print JSON; what the program calls")
    options = parser.parse_args()
    if options.variant is not None:
        print(json.dumps(measure(VARIANTS[options.variant], options)))
        return
    header(options)
    baseline: float | None = None
    ratio: float | None = None
    for index, variant in enumerate(VARIANTS):
        result = in_fresh_process(index, variant, options)
        extra = result if isinstance(result, str) else result["extra"]
        if variant.baseline:
            baseline = None if isinstance(extra, str) else extra
        print(row(variant, result, baseline), flush=True)
        if index == 1 and baseline and not isinstance(extra, str):
            ratio = extra / baseline
    verdict = "not measured" if ratio is None else f"{100 * ratio:.1f} %: {'met' if ratio <= TARGET else 'missed'}"
    print(f"\nTarget: exprl needs at most {100 * TARGET:.0f} % of what materialised logits need in fp32. {verdict}.")


def header(options: argparse.Namespace) -> None:
    """What is measured, on what."""
    size = f"T = {options.tokens:,}, V = {options.vocabulary:,}, D = {options.hidden:,}"
    one = options.tokens * options.vocabulary * 4 / GIB
    packages = ", ".join(f"{x} {version(x)}" for x in ("torch", "trl", "liger-kernel"))
    print(f"# Peak memory on a CPU, {size}\n")
    print(
        f"{processor()}, {available_gib():.0f} GiB available, {platform.system()}, Python {platform.python_version()}, "
        f"{packages}; {options.threads} threads; {date.today()}.\n"
    )
    print(f"    python benchmarks/kernels_memory.py {' '.join(sys.argv[1:])}".rstrip() + "\n")
    print(
        f"Forward and backward of log-prob and entropy, each in a fresh process; one fp32 [T, V] is {one:.2f} GiB. "
        "`extra` is the peak\nof resident memory beyond libraries, inputs and gradients; `of materialised` compares "
        "with the materialised logits above it\n(in fp32). Other jobs shared the machine: the seconds only "
        "give an idea.\n"
    )
    print("| | dtype | extra GiB | of materialised | seconds |\n|---|---|---:|---:|---:|")


def row(variant: Variant, result: dict[str, float] | str, baseline: float | None) -> str:
    if isinstance(result, str):
        return f"| {variant.name} | {variant.dtype} | {result} | | |"
    share = "" if not baseline else f"{100 * result['extra'] / baseline:.1f} %"
    return f"| {variant.name} | {variant.dtype} | {result['extra']:.2f} | {share} | {result['seconds']:.1f} |"


def in_fresh_process(index: int, variant: Variant, options: argparse.Namespace) -> dict[str, float] | str:
    """The measurement, or why there is none."""
    needed = variant.copies * options.tokens * options.vocabulary * 4 / GIB + MARGIN_GIB
    if needed > available_gib():
        return f"would not fit: about {needed:.0f} GiB needed, {available_gib():.0f} available"
    command = [sys.executable, __file__, *sys.argv[1:], "--variant", str(index)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if process.returncode:
        print(process.stderr, file=sys.stderr)
        return f"failed: {(process.stderr.strip().splitlines() or [f'exit status {process.returncode}'])[-1]}"
    return json.loads(process.stdout.splitlines()[-1])


def measure(variant: Variant, options: argparse.Namespace) -> dict[str, float]:
    """Extra GiB and seconds of one forward and backward pass in this process."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # should memory run out, this process goes, not another job's
    torch.set_num_threads(options.threads)
    adapter = next(x for x in ADAPTERS if (x.peer, x.task) == (variant.peer, variant.task))
    forward = adapter.load()

    def both(size: Size) -> tuple[float, float, float]:
        problem = make_problem(variant.task, size, torch.device("cpu"))
        # Freed pieces that the allocator keeps would hide as many bytes of the peak.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, start = status_bytes("VmRSS"), time.perf_counter()
        outputs = forward(problem)
        pairs = [(out, up) for out, up in zip(outputs, problem.upstream, strict=True) if out is not None]
        upstream = [up.to(out.dtype) for out, up in pairs]
        gradients = torch.autograd.grad([out for out, _ in pairs], problem.inputs, upstream)
        seconds = time.perf_counter() - start
        return status_bytes("VmHWM") - before, sum(x.nbytes for x in gradients), seconds

    both(Size(tokens=4, hidden=options.hidden, vocabulary=64, dtype=variant.dtype))  # loads what is loaded once
    peak, gradients, seconds = both(
        Size(tokens=options.tokens, hidden=options.hidden, vocabulary=options.vocabulary, dtype=variant.dtype)
    )
    return {"extra": (peak - gradients) / GIB, "seconds": seconds}


def status_bytes(field: str) -> int:
    """A line of /proc/self/status, which is in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


def available_gib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024 / GIB


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
