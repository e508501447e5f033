"""Weights in buckets: files of bounded size, each of which says what it must be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


class BucketError(ValueError):
    """A file is not the bucket it should be."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """What a bucket's file must be: its name, its length in bytes and the SHA-256 of them."""

    file: str
    size: int
    digest: str


def in_buckets(weights: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[tuple[dict[str, Tensor], bool]]:
    """Successive tensors, together at most `limit` bytes, and whether they are the last; a larger one is alone.

    >>> import torch
    >>> four = [(name, torch.zeros(size)) for name, size in (("a", 2), ("b", 3), ("c", 9), ("d", 1))]
    >>> [(list(bucket), last) for bucket, last in in_buckets(four, limit=20)]
    [(['a', 'b'], False), (['c'], False), (['d'], True)]
    """
    bucket: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in weights:
        if bucket and filled + tensor.nbytes > limit:
            yield bucket, False
            bucket, filled = {}, 0
        bucket[name] = tensor
        filled += tensor.nbytes
    if bucket:
        yield bucket, True


def write_bucket(tensors: dict[str, Tensor], path: Path) -> Bucket:
    """Write tensors of any device to `path`."""
    save_file(_apart(tensors), path)
    return Bucket(file=path.name, size=path.stat().st_size, digest=_digest(path))


def read_bucket(folder: Path, bucket: Bucket) -> dict[str, Tensor]:
    """The tensors, which read the file's memory and keep it when it is removed.

    Raises:
        BucketError: the file is not there, not whole, or another one.
    """
    path = folder / Path(bucket.file).name
    try:
        size = path.stat().st_size
        if size != bucket.size:
            raise BucketError(f"{path} has {size} bytes, but {bucket.size} were announced: it is cut short or foreign")
        if _digest(path) != bucket.digest:
            raise BucketError(f"{path} holds other bytes than were announced: it is stale or foreign")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BucketError(f"{path} cannot be read: {error}") from error


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, each with memory of its own: a file has no place for two names of one."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        memory = here.untyped_storage().data_ptr()
        apart[name] = here.clone() if memory in seen else here
        seen.add(memory)
    return apart


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
