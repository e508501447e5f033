"""Compile the kernels for GPUs that are not here, through the functions that launch them; print the result as JSON.

Run as a script in a process of its own without TRITON_INTERPRET. Arguments: compute capabilities such as 90. A stand-in
for the driver names the target, a launch becomes a compilation, and tensors are on the meta device: so what is compiled
has the very arguments, flags and block sizes of a real launch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from exprl.kernels.fused import launch, operations, policy_loss
from exprl.kernels.rows import GradientCoefficients, Tokens

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SLICE = 4096
FP32, BF16, INT64 = torch.float32, torch.bfloat16, torch.int64

compiled: list[dict[str, Any]] = []  # one entry a launch


class Target:
    """A driver for one GPU of a capability, of which nothing is launched."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # the key under which a kernel keeps what it compiled

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_instead(kernel: JITFunction, grid: object) -> Callable[..., None]:
    """What `kernel[grid]` gives: a function that compiles for the given arguments, or finds that it has."""

    def launched(*arguments: object, **options: Any) -> None:
        result = kernel.warmup(*arguments, grid=grid, **options)
        compiled.append({"kernel": kernel.__name__, "options": options, "result": result})

    return launched


def empty(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def fixed(tokens: int, softcap: float | None, masked: bool) -> Tokens:
    ids = empty(tokens, dtype=INT64)
    return Tokens(ids, empty(tokens), softcap, rows=empty(tokens, dtype=INT64) if masked else None)


def sweep(
    tokens: int,
    *,
    z: torch.dtype = FP32,
    out: torch.dtype = BF16,
    two_heads: bool = False,
    divergence: str | None = None,
    softcap: float | None = None,
    masked: bool = False,
    width: int = SLICE,
    first: int = 0,
) -> None:
    """One slice of `linear_logprob`, or with bf16 `z` of `logprob_entropy`: both directions."""
    t = fixed(tokens, softcap, masked)
    policy = empty(tokens, SLICE, dtype=z)[:, :width]
    frozen = empty(tokens, SLICE, dtype=z)[:, :width] if two_heads else None
    operations.merge(empty(8, tokens), policy, frozen, first, t, entropy=True, divergence=divergence)
    if divergence == "jsd":
        operations.merge_jsd(empty(2, tokens), policy, frozen, t, empty(tokens), empty(tokens))
    k = GradientCoefficients(*(empty(tokens) for _ in range(6)))
    operations.gradient(empty(tokens, SLICE, dtype=out)[:, :width], policy, frozen, first, t, k, divergence=divergence)


def policy(tokens: int, **options: Any) -> None:
    """The policy loss with everything on."""
    columns = [empty(tokens) for _ in range(5)]
    options = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0, "kl_coef": 0.1, "kl": "k3", **options}
    policy_loss(*columns, empty(tokens, dtype=torch.bool), max_log_ratio=20.0, **options)


def everything(tokens: int, **options: Any) -> None:
    """Each kernel with the flags that runs use, and with all that take registers."""
    sweep(tokens, **options)
    sweep(tokens, softcap=30.0, **options)
    for divergence in ("rkl", "fkl", "jsd"):
        sweep(tokens, two_heads=True, divergence=divergence, softcap=30.0, **options)
    sweep(tokens, z=BF16, masked=True, **options)
    policy(tokens)


def resources(result: Any) -> dict[str, int]:
    """Registers a thread and bytes spilled, from the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    fields = next(line for line in lines if "REG:" in line).split()
    numbers = dict(field.split(":") for field in fields if field.split(":")[0] in ("REG", "STACK", "LOCAL"))
    return {name: int(number) for name, number in numbers.items()}


def narrow_offsets(result: Any) -> list[str]:
    """Where Triton's first form of the kernel multiplies the program's number in 32 bits: T · V is more than that."""
    lines = result.asm["ttir"].splitlines()
    numbers = [line.split("=")[0].strip() for line in lines if "tt.get_program_id" in line]
    assert numbers, "no program number in the kernel"
    return [line.strip() for line in lines if "arith.muli" in line and any(f"{n}," in line for n in numbers)]


def main(capabilities: list[int]) -> None:
    """For each capability the kernels with their registers, and how many more other lengths would have compiled."""
    JITFunction.__getitem__ = compile_instead
    report = []
    for capability in capabilities:
        driver.set_active(Target(capability))
        operations.launch_for = lambda z, *, two_heads: launch._TWO_HEADS if two_heads else launch._ONE_HEAD
        compiled.clear()
        everything(1)
        kernels = [
            {
                "kernel": c["kernel"],
                "options": {k: str(v) for k, v in c["options"].items()},
                "narrow": narrow_offsets(c["result"]),
                **resources(c["result"]),
            }
            for c in compiled
        ]
        before = len({id(c["result"]) for c in compiled})
        for tokens in (2, 15, 16, 17, 1000, 1024, 16_384, 32_768):
            everything(tokens, first=tokens, width=SLICE - tokens % SLICE)  # slices of any place and width, too
        more = len({id(c["result"]) for c in compiled}) - before
        report.append({"capability": capability, "kernels": kernels, "more": more})
    print(json.dumps(report))


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
