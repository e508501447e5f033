"""Freed memory is kept, which the system's own count of fetched pages shows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

PROGRAM = """
import resource
import torch
from exprl.models.memory import keep_freed_memory
{call}
def use():
    return [torch.ones(2**24) for _ in range(4)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(call: str, **environment: str) -> int:
    """Pages fetched for 256 MiB that were had and freed before."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=call)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    return int(done.stdout)


@pytest.mark.skipif(torch.accelerator.is_available() or sys.platform != "linux", reason="glibc, where a CPU computes")
def test_tensors_take_the_pages_of_those_before():
    given_back = pages("assert not keep_freed_memory()", MALLOC_ARENA_MAX="4")
    assert pages("assert keep_freed_memory()") < given_back / 2
