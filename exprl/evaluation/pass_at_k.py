"""Unbiased pass@k (Chen et al. 2021, arXiv:2107.03374, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Counts = Sequence[int] | npt.NDArray[np.integer[Any]]


@overload
def pass_at_k(n: int, c: int, k: int) -> float: ...
@overload
def pass_at_k(n: int | Counts, c: Counts, k: int) -> Array: ...
@overload
def pass_at_k(n: Counts, c: int | Counts, k: int) -> Array: ...


def pass_at_k(n: int | Counts, c: int | Counts, k: int) -> float | Array:
    """The chance that at least one of k samples is right, from c right ones among n: 1 - C(n-c, k) / C(n, k).

    Computed with integers and rounded once, so it is exact to the last bit for any n.

    Args:
        n: samples drawn, one number or [P].
        c: right ones among them, one number or [P].
        k: samples allowed.

    Returns:
        A float for two numbers, otherwise [P].

    Raises:
        ValueError: unless 1 <= k <= n and 0 <= c <= n.

    >>> pass_at_k(4, 1, 2)
    0.5
    >>> pass_at_k(10, [0, 3, 10], 1)
    array([0. , 0.3, 1. ])
    """
    if isinstance(n, int) and isinstance(c, int):
        return _exact(n, c, k)
    pairs = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    values = [_exact(int(total), int(right), k) for total, right in zip(*(p.ravel() for p in pairs), strict=True)]
    return np.array(values, dtype=np.float64).reshape(pairs[0].shape)


@lru_cache(maxsize=65536)
def _exact(n: int, c: int, k: int) -> float:
    if not 1 <= k <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n, but got k={k} with n={n} samples: sample more or lower k")
    if not 0 <= c <= n:
        raise ValueError(f"the number of right samples must lie in 0..{n}, but got {c}")
    subsets = comb(n, k)
    return (subsets - comb(n - c, k)) / subsets
