"""The entry point by which vLLM, in each of its processes, learns of this project's transport."""

from __future__ import annotations

NAME = "exprl_file"
"""The backend of vLLM's weight transfer config that takes weights from files."""


PLUGIN = "exprl"
"""The name of the entry point."""


def register() -> None:
    """Add the transport to vLLM's; called again, or by a vLLM that has none, it does nothing."""
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    except ImportError:
        return
    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(NAME, "exprl.engines.transfer.worker", "FileWeightTransferEngine")
