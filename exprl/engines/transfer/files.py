"""Weights by files in memory that trainer and servers share, or in a folder that they share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exprl.engines.transfer.base import BUCKET_BYTES, Group, WeightTransfer
from exprl.engines.transfer.control import ControlPlane
from exprl.engines.transfer.folder import SHARED_MEMORY, TransferFolder
from exprl.engines.transfer.plugin import NAME, PLUGIN
from exprl.errors import PathError

if TYPE_CHECKING:
    from torch import Tensor

    from exprl.engines.transfer.buckets import Bucket


class FileTransfer(WeightTransfer):
    """Writes a bucket, has every server load it while it writes the next, removes it: any device, no second whole copy.

    The servers must have this package installed, which is vLLM's plugin for the transport.

    Args:
        folder: where buckets lie for a moment; servers must see it under the same path.
        bucket_bytes: how large one may be; at most two lie in the folder at a time.
        rank, tied: see `WeightTransfer`.
    """

    name = NAME

    def __init__(self, *, folder: Path = SHARED_MEMORY, bucket_bytes: int = BUCKET_BYTES, **trainer: Any) -> None:
        super().__init__(**trainer)
        self.parent, self.bucket_bytes = folder, bucket_bytes
        self._folder: TransferFolder | None = None

    def environment(self) -> dict[str, str]:
        """What a server must have in its environment; where that lists the plugins that vLLM loads, this one, too."""
        plugins = os.environ.get("VLLM_PLUGINS")
        listed = {} if plugins is None else {"VLLM_PLUGINS": ",".join(filter(None, (plugins, PLUGIN)))}
        return {**super().environment(), **listed}

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def _introduce(self, group: Group) -> None:
        info = {"folder": str(self._own_folder()), "token": self._token, "tied": sorted(self.tied)}
        group.each(lambda server: server.init_weight_transfer_engine(info))

    def _pass(self, weights: Iterator[tuple[str, Tensor]], group: Group, label: str) -> None:
        from exprl.engines.transfer.buckets import in_buckets

        folder = self._own_folder()
        with ExitStack() as under_way:
            for index, (tensors, last) in enumerate(in_buckets(weights, self.bucket_bytes)):
                if not group.standing:
                    return
                with ExitStack() as bucket:
                    path = folder / f"{index}.safetensors"
                    bucket.callback(path.unlink, missing_ok=True)
                    described = self._written(tensors, path)
                    under_way.close()  # while this one was made the servers took the one before
                    info = {**asdict(described), "version": label, "index": index, "last": last}
                    bucket.callback(group.begin(_taking(info)))
                    under_way.enter_context(bucket.pop_all())

    def _written(self, tensors: dict[str, Tensor], path: Path) -> Bucket:
        from safetensors import SafetensorError

        from exprl.engines.transfer.buckets import write_bucket

        try:
            return write_bucket(tensors, path)
        except (OSError, SafetensorError) as error:
            raise PathError(
                f"weights cannot go to servers through {path.parent}: {error}. Free some of it, lower bucket_bytes "
                f"({self.bucket_bytes}), or name another folder that trainer and servers share."
            ) from error

    def _own_folder(self) -> Path:
        if self._folder is None:
            self._folder = TransferFolder(self.parent, self._token)
        return self._folder.path


def _taking(info: dict[str, Any]) -> Callable[[ControlPlane], None]:
    return lambda server: server.update_weights(info)
