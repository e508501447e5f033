"""Where the kernels' tests run: every backend that can, on every device there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Place:
    """A backend, its device and the dtype of what it is given."""

    backend: str
    device: str
    dtype: torch.dtype

    @property
    def close(self) -> dict[str, float]:
        """How close to the float64 results must be."""
        bound = 1e-10 if self.dtype == torch.float64 else 1e-5
        return {"rtol": bound, "atol": bound}

    @property
    def bf16_error(self) -> float:
        """Of a number that the backend writes in bf16, relative; Triton's interpreter cuts off where a GPU rounds."""
        return 2**-7 if self.backend == "triton" and self.device == "cpu" else 2**-8

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}-{str(self.dtype).removeprefix('torch.')}"


EAGER = [
    Place("eager", "cpu", torch.float64),
    Place("eager", "cpu", torch.float32),
    *([Place("eager", "cuda", torch.float32)] if CUDA else []),
]
TRITON = [Place("triton", "cuda" if CUDA else "cpu", torch.float32)]  # on a CPU in Triton's interpreter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Here the interpreter computes both sides of a `where`, and numpy warns of the NaN that is not taken.

    Of each test, coverage is measured in the first case and the first of Triton's: it doubles the interpreter's time.
    """
    measured = set()
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"))
        name, _, case = item.nodeid.partition("[")
        test = name, "triton" in case
        if test in measured:
            item.add_marker(pytest.mark.no_cover)
        measured.add(test)


@pytest.fixture(autouse=True)
def _exact_products():
    """No TF32 on a GPU: the tests compare with float64."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=[*EAGER, *TRITON], ids=str)
def place(request: pytest.FixtureRequest) -> Place:
    """Each backend and device in turn."""
    return request.param


@pytest.fixture(params=[EAGER[-1], *TRITON], ids=lambda p: p.backend)
def fp32(request: pytest.FixtureRequest) -> Place:
    """Each backend in fp32: where another precision would show nothing more."""
    return request.param
