"""Memory of a device that ran out."""

from __future__ import annotations

import pytest
import torch

from exprl.checks.memory import memory_for
from exprl.errors import OutOfMemoryError

ON_A_GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.20 GiB is "
    "free. Including non-PyTorch memory, this process has 77.90 GiB memory in use."
)


def test_that_of_a_gpu_is_said_with_what_was_asked_for_and_what_takes_less() -> None:
    with pytest.raises(OutOfMemoryError) as raised, memory_for("updating", "Take less."):
        raise torch.OutOfMemoryError(ON_A_GPU)
    assert str(raised.value) == (
        "updating: memory ran out (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 "
        "GiB of which 1.20 GiB is free). Take less."
    )
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)


def test_that_of_a_cpu_too() -> None:
    with (
        pytest.raises(
            OutOfMemoryError, match=r"^judging: memory ran out .*can't allocate memory.*\)\. Take less\.$"
        ) as raised,
        memory_for("judging", "Take less."),
    ):
        torch.empty(2**60)
    assert "\n" not in str(raised.value)


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_for("updating", ""):
        raise RuntimeError("shapes")
