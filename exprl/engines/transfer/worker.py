"""The server's side of the file transport, in each of vLLM's workers; imported with vLLM only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_world_group
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from exprl.engines.transfer.buckets import Bucket, BucketError, read_bucket
from exprl.engines.transfer.folder import check_owner
from exprl.engines.vllm_weights import names_in, renamed_in, repack_experts


@dataclass(frozen=True, kw_only=True)
class FileInitInfo:
    """Where buckets will lie, who writes them, and the second names of tied weights among them."""

    folder: str
    token: str
    tied: list[str]


@dataclass(frozen=True, kw_only=True)
class FileUpdateInfo:
    """One bucket: its place in the transfer, whether it is the last, and what its file must be."""

    version: str
    index: int
    last: bool
    file: str
    size: int
    digest: str


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):  # type: ignore[misc]
    """Loads each bucket as vLLM loads a checkpoint, layer by layer.

    A bucket that is not the announced one, or not the next, ends the transfer before anything of it is loaded. What
    earlier buckets of that transfer have loaded stays, so that the server must not answer until one is whole.
    """

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._other: FileInitInfo | None = None
        self._version: str | None = None
        self._next = 0
        self._whole = self._refused = False

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """See that this process reads the trainer's folder.

        Raises:
            ValueError: it does not.
        """
        check_owner(Path(init_info.folder), init_info.token)
        self._other = init_info

    def start_weight_update(self) -> None:
        """Have vLLM's layers take new weights."""
        if self._other is None:
            raise ValueError("no trainer has named its folder: init_weight_transfer_engine comes first")
        self._version, self._next, self._whole, self._refused = None, 0, False, False
        self._unknown = self._unknown_of(self._other.tied)
        if self.device.type == "cpu":
            repack_experts(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one bucket, or none where any worker of the model refuses it: then the layers are whole again.

        An empty `update_info` ends a transfer that was left.
        """
        refusal: Exception | None = None
        try:
            self.receive_weights(self.parse_update_info(update_info))
            if self.device.type != "cpu":
                torch.accelerator.synchronize()
        except Exception as error:  # noqa: BLE001 - raised below, when all workers know
            refusal = error
        if update_info:
            refusal = self._agreed(refusal)
        if refusal is None:
            return
        self._refused = True
        self._put_back()
        # vLLM asks worker after worker for what a call gave and stops at the first error: those of the others would
        # pass for what the next calls gave.
        if self.parallel_config.rank == self.parallel_config.world_size - 1:
            raise refusal

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Load one bucket.

        Raises:
            BucketError: its file is another one, or it is not this transfer's next.
        """
        assert self._other is not None
        self._check_place(update_info)
        bucket = Bucket(file=update_info.file, size=update_info.size, digest=update_info.digest)
        tensors = read_bucket(Path(self._other.folder), bucket)
        with disable_mtp_completeness_check():
            self.model.load_weights(self._known(tensors))
        self._version, self._next, self._whole = update_info.version, self._next + 1, update_info.last

    def finish_weight_update(self) -> None:
        """Finish what is loaded whole; after a refusal there is nothing to do.

        Raises:
            BucketError: the last bucket has not come.
        """
        if self._refused:
            return
        if not self._whole:
            raise BucketError(f"bucket {self._next} has not come, so the weights are not whole")
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Forget the trainer."""
        self._other = None

    def _check_place(self, bucket: FileUpdateInfo) -> None:
        expected = (bucket.version if self._version is None else self._version, self._next)
        if self._whole or (bucket.version, bucket.index) != expected:
            raise BucketError(
                f"bucket {bucket.index} of version {bucket.version} came where bucket {expected[1]} of {expected[0]} "
                f"was due{', after the last' if self._whole else ''}"
            )

    def _agreed(self, refusal: Exception | None) -> Exception | None:
        """Why this transfer is refused, by this worker or another."""
        if self.parallel_config.world_size == 1:
            return refusal
        refused = torch.tensor([float(refusal is not None)])
        torch.distributed.all_reduce(refused, group=get_world_group().cpu_group)
        return refusal or (BucketError("another worker of this server refuses the bucket") if refused else None)

    def _unknown_of(self, tied: list[str]) -> frozenset[str]:
        known = names_in(self.model)
        return frozenset(name for name, there in renamed_in(self.model, tied).items() if there not in known)

    def _known(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor) for name, tensor in tensors.items() if name not in self._unknown)

    def _put_back(self) -> None:
        """Layers that wait for more of their weights get back those they had."""
        for layer in self.model.modules():
            waiting = get_layerwise_info(layer)
            if waiting.can_load():
                waiting.load_numel = 0
                waiting.loaded_weights.clear()
        finalize_layerwise_reload(self.model, self.model_config)
