"""The executor of an engine in the trainer's process; imported with vLLM only."""

from __future__ import annotations

import torch
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class LocalExecutor(UniProcExecutor):  # type: ignore[misc]
    """Computes on the device of this process, which is another one for each rank; vLLM's own takes the first."""

    def _distributed_args(self) -> tuple[str, int, int]:
        method, rank, device = super()._distributed_args()
        return method, rank, torch.cuda.current_device() if torch.cuda.is_available() else device
