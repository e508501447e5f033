"""Which way weights go to servers, by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from exprl.engines.transfer.base import WeightTransfer
from exprl.engines.transfer.files import FileTransfer
from exprl.errors import ConfigError

Way = Literal["auto", "file", "nccl", "ipc"]


def way_for(asked: Way, *, gpus: bool, shared: bool) -> Way:
    """The way that `asked` means; "auto": `ipc` on shared GPUs, `nccl` on others, `file` where there are none.

    Args:
        asked: as configured.
        gpus: whether both the trainer and the servers compute on GPUs.
        shared: whether the servers compute on the trainer's own.

    Raises:
        ConfigError: a way that needs GPUs where there are none.

    >>> [way_for("auto", gpus=gpus, shared=shared) for gpus, shared in ((False, False), (True, False), (True, True))]
    ['file', 'nccl', 'ipc']
    """
    if asked in ("nccl", "ipc") and not gpus:
        raise ConfigError(
            f"transfer: {asked} goes from GPU to GPU, but trainer or servers have none: set transfer=file."
        )
    if asked != "auto":
        return asked
    return "file" if not gpus else "ipc" if shared else "nccl"


def make_transfer(way: Way, *, folder: Path, bucket_bytes: int, rank: int, tied: Iterable[str]) -> WeightTransfer:
    """The transfer of that name; `folder` is for `file` alone."""
    if way == "file":
        return FileTransfer(folder=folder, bucket_bytes=bucket_bytes, rank=rank, tied=tied)
    from exprl.engines.transfer.devices import IPCTransfer, NCCLTransfer

    kind = IPCTransfer if way == "ipc" else NCCLTransfer
    return kind(bucket_bytes=bucket_bytes, rank=rank, tied=tied)
