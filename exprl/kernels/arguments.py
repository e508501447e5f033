"""Checks of arguments: every wrong shape, dtype, device or value is named before a kernel runs."""

from __future__ import annotations

import math
import reprlib
import sys
from typing import Any, get_args

import torch
from torch import Tensor


def describe(value: object) -> str:
    """`bfloat16 [4, 8] on cuda:0` for a tensor, the type's name for anything else."""
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {reprlib.repr(value)}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"


def check_matrix(name: str, value: Tensor, shape: str, rows: int | None = None, columns: int | None = None) -> None:
    """Floating point, two dimensions, and the given sizes where they are known."""
    fits = isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point()
    if not fits or rows not in (None, value.shape[0]) or columns not in (None, value.shape[1]):
        raise ValueError(f"{name}: expected floating point {shape}, but got {describe(value)}")


def check_vector(name: str, value: Tensor, length: int | str, dtype: torch.dtype | None = None) -> None:
    """[length] of `dtype`, or of any floating point where it is None; any length where that is a letter."""
    fits = isinstance(value, Tensor) and value.dim() == 1 and (isinstance(length, str) or len(value) == length)
    if not fits or (value.dtype != dtype if dtype is not None else not value.is_floating_point()):
        kind = "floating point" if dtype is None else str(dtype).removeprefix("torch.")
        raise ValueError(f"{name}: expected {kind} [{length}], but got {describe(value)}")


def check_tokens(**tensors: Tensor | None) -> None:
    """Floating point [T] each, as many and on the same device as the first; None is left out."""
    (first, like), *_ = tensors.items()
    check_vector(first, like, "T")  # type: ignore[arg-type]
    for name, tensor in tensors.items():
        if tensor is not None:
            check_vector(name, tensor, len(like))  # type: ignore[arg-type]
    check_device(like.device, **tensors)  # type: ignore[union-attr]


def check_choice(name: str, value: object, choices: Any, or_none: str = "") -> None:
    """One of the words of a `Literal`."""
    if not isinstance(value, str) or value not in get_args(choices):
        raise ValueError(f"{name}: expected one of {', '.join(get_args(choices))}{or_none}, but got {value!r}")


def check_number(name: str, value: object, low: float, high: float, expected: str) -> None:
    """A number from `low` to `high`, which `expected` says in words."""
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name}: expected {expected}, but got {value!r}")


def check_device(device: torch.device, **tensors: Tensor | None) -> None:
    """All on one device."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name}: expected a tensor on {device}, but got {describe(tensor)}")


def check_positive(name: str, value: float | None) -> None:
    """A finite number above 0, or None."""
    if value is not None:
        check_number(name, value, math.ulp(0.0), sys.float_info.max, "a finite number above 0")


def check_temperature(temperature: float | Tensor, tokens: int) -> None:
    """A number above 0, or floating point [tokens] (whose values `check_values` looks at)."""
    if isinstance(temperature, Tensor):
        check_vector("temperature", temperature, tokens)
        if temperature.requires_grad:
            raise ValueError("temperature: it is a constant here and gets no gradient; pass temperature.detach()")
    elif not isinstance(temperature, (int, float)):
        raise ValueError(
            f"temperature: expected a number or floating point [{tokens}], but got {describe(temperature)}"
        )
    else:
        check_positive("temperature", temperature)


def check_values(ids: Tensor, vocabulary: int, temperature: float | Tensor) -> None:
    """Values of ids and temperature; waits for the device once."""
    wrong = [((ids < 0) | (ids >= vocabulary)).any()]
    if isinstance(temperature, Tensor):
        wrong.append(~((temperature > 0) & temperature.isfinite()).all())
    found = torch.stack(wrong).tolist()
    if found[0]:
        raise ValueError(
            f"ids: expected values in 0..{vocabulary - 1} wherever the mask is true, but {describe(ids)} holds "
            f"{int(ids.min())}..{int(ids.max())}"
        )
    if found[-1]:
        raise ValueError(f"temperature: expected finite values above 0, but {describe(temperature)} holds others")


def inverse_temperature(temperature: float | Tensor, like: Tensor) -> Tensor:
    """1 / temperature for every token [T], in the dtype and on the device of `like` [T]."""
    if isinstance(temperature, Tensor):
        return temperature.to(like.dtype).reciprocal()
    return torch.full_like(like, 1 / temperature)


def is_tempered(temperature: float | Tensor) -> bool:
    """Whether it may differ from 1; of a tensor that is not looked at."""
    return isinstance(temperature, Tensor) or temperature != 1
