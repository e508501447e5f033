"""What benchmarks that train share: a variant in a process of its own, its memory, the machine's name."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import torch

GIB = 2**30


def in_fresh_process(arguments: Sequence[str], *, threads: int, limit: float) -> dict[str, Any]:
    """The JSON that a Python program prints last, or {"failed": why there is none} after at most `limit` seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    try:
        process = subprocess.run(  # stderr is shown as it comes: what a program that is cut off had measured
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no result within {limit:.0f} s"}
    if process.returncode == -9:
        return {"failed": "out of memory (killed)"}
    if process.returncode:
        return {"failed": f"exit status {process.returncode}, see above"}
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def leave(status: int = 0) -> NoReturn:
    """End this process as a program whose tables are printed, at once.

    Python takes seconds to take the libraries down, in which a caller with a time limit would call it cut off.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Memory:
    """Peak memory from here on: allocated on a GPU; on a CPU resident, less what is resident now."""

    def __init__(self, device: str) -> None:
        self.gpu = device == "cuda"
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            self.before = status_bytes("VmRSS")

    def peak_gib(self) -> float:
        """The peak so far."""
        return (torch.cuda.max_memory_allocated() if self.gpu else status_bytes("VmHWM") - self.before) / GIB

    def total_gib(self, given: float) -> float:
        """What there was: a GPU's own, else `given`."""
        return torch.cuda.mem_get_info()[1] / GIB if self.gpu else given


def limit_memory(gib: float) -> None:
    """Let this process take no more than `gib` from here on; should memory run out, it goes, not another job's."""
    Path("/proc/self/oom_score_adj").write_text("1000")
    limit = status_bytes("VmData") + int(gib * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def status_bytes(field: str) -> int:
    """A line of /proc/self/status, which is in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


def synchronize(device: str) -> None:
    """Wait for what a GPU was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def device_name() -> str:
    """The GPU's, else the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.processor())


def versions(*packages: str) -> str:
    """Of these packages, torch and transformers first; those that are not installed are left out."""
    found = []
    for name in ("torch", "transformers", *packages):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
