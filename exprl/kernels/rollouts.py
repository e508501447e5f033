"""Sums over the tokens of each rollout, where rollouts lie one after another in a flat tensor."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from exprl.kernels.arguments import check_vector, describe


def sum_by_rollout(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """The sum [B] of each rollout's tokens.

    >>> sum_by_rollout(torch.tensor([1.0, 2.0, 4.0]), [2, 1])
    tensor([3., 4.])

    Args:
        values: [N], those of a rollout one after another.
        lengths: tokens of each of the B rollouts, in their order.

    Raises:
        ValueError: `values` is not floating point [N], or the lengths do not add up to N.
    """
    check_vector("values", values, "T")
    counts = torch.tensor(checked_lengths(lengths, len(values)), dtype=torch.int64, device=values.device)
    return torch.segment_reduce(values, "sum", lengths=counts, initial=0, unsafe=True)  # checked here, without a wait


def mean_by_rollout(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """The mean [B] of each rollout's tokens, 0 for one without; see `sum_by_rollout`."""
    sums = sum_by_rollout(values, lengths)
    return sums / torch.tensor(lengths, dtype=values.dtype, device=values.device).clamp(min=1)


def by_token(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """A number [B] for each rollout as one [N] for each of its tokens.

    >>> by_token(torch.tensor([3.0, 4.0]), [2, 1])
    tensor([3., 3., 4.])

    Raises:
        ValueError: `values` does not have one number for each length.
    """
    lengths = checked_lengths(lengths)
    if not isinstance(values, Tensor) or values.shape != (len(lengths),):
        raise ValueError(f"values: expected a tensor [{len(lengths)}], one for each length, but got {describe(values)}")
    counts = torch.tensor(lengths, dtype=torch.int64, device=values.device)
    return values.repeat_interleave(counts, output_size=sum(lengths))


def checked_lengths(lengths: Sequence[int], tokens: int | None = None) -> list[int]:
    """The lengths of rollouts, or `ValueError` where they are not whole numbers or not of N tokens together."""
    try:
        counts = [operator.index(length) for length in lengths]
    except TypeError:
        raise ValueError(f"lengths: expected the tokens of each rollout, but got {describe(lengths)}") from None
    together = sum(counts) if tokens is None else tokens
    if sum(counts) != together or any(count < 0 for count in counts):
        raise ValueError(
            f"lengths: expected the tokens of each rollout, {together} together, but got {counts[:20]} "
            f"({sum(counts)} together)"
        )
    return counts
