"""Float32 products of a model's layers: oneDNN, as exprl calls it, against torch's own `linear`, which calls MKL.

    python benchmarks/products.py > benchmarks/results/products.md

Layers of SmolLM2-135M. Rows are tokens computed at once: rollouts in decoding, tokens of a micro-batch in an update.
Every layer has as many copies of its weight as do not fit the cache, as a model has; rates are by CPU time, the best of
`--repeats`, the libraries by turns. `packed` is oneDNN with weights in its own order, as the engine holds them.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from measuring import device_name, versions  # noqa: E402

from exprl.kernels import onednn  # noqa: E402

SHAPES = {"attention": (576, 576), "keys": (192, 576), "up": (1536, 576), "down": (576, 1536), "head": (49152, 576)}
CACHE_BYTES = 32 * 2**20


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--layers", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    taken = "exprl takes oneDNN here" if onednn.machine_gains() else "exprl leaves products to torch here"
    print("# Float32 products\n")
    print(f"{device_name()}, Python {platform.python_version()}, {versions()}; threads: 1; {date.today()}: {taken}.\n")
    print(f"    python benchmarks/products.py {' '.join(sys.argv[1:])}".rstrip() + "\n")
    print("GFLOP a CPU second.\n\n| layer | rows | torch | oneDNN | packed | oneDNN / torch | packed / torch |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in options.layers:
        for rows in options.rows:
            plain, own, packed = rates(*SHAPES[name], rows, options.repeats)
            ratios = f"{own / plain:.2f} | {packed / plain:.2f}"
            print(f"| {name} | {rows} | {plain:.0f} | {own:.0f} | {packed:.0f} | {ratios} |", flush=True)


def rates(outputs: int, inputs: int, rows: int, repeats: int) -> list[float]:
    """GFLOP a CPU second of torch, oneDNN and oneDNN on packed weights."""
    copies = max(1, 2 * CACHE_BYTES // (4 * outputs * inputs))
    weights = [torch.randn(outputs, inputs) for _ in range(copies)]
    packed = [onednn.packed(weight, rows) for weight in weights]
    left = torch.randn(rows, inputs)
    variants: list[Callable[[], None]] = [
        partial(through, linear, left, weights),
        partial(through, onednn.product, left, weights),
        partial(through, onednn.product, left, packed),
    ]
    best = [float("inf")] * len(variants)
    for repeat in range(repeats + 1):
        for number, variant in enumerate(variants):
            start = time.thread_time()
            variant()
            if repeat:  # the first warms up
                best[number] = min(best[number], time.thread_time() - start)
    return [2 * rows * inputs * outputs * copies / seconds / 1e9 for seconds in best]


def through(product: Callable[[Tensor, Tensor], Tensor], left: Tensor, weights: list[Tensor]) -> None:
    for weight in weights:
        product(left, weight)


if __name__ == "__main__":
    main()
