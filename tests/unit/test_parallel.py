"""What strategies are for, and models that are not sharded."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from exprl.errors import ConfigError
from exprl.experiment import TrainerConfig
from exprl.models.base import LanguageModel
from exprl.models.sharding import awaken, decoder_layers, gathered, is_sharded, whole
from exprl.training.parallel import (
    ReplicatedStrategy,
    ShardedStrategy,
    check_strategy,
    clip_gradients,
    environment_for,
    strategy_for,
    sum_gradients,
)
from exprl.training.world import World


def test_a_strategy_that_sums_gradients_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="DDPStrategy exchanges gradients"):
        check_strategy(DDPStrategy())
    for fine in (SingleDeviceStrategy(device="cpu"), ReplicatedStrategy(), ShardedStrategy(2, offload=False)):
        check_strategy(fine)


def test_the_config_picks_the_strategy() -> None:
    alone, two = World(), World()
    two.size = 2
    assert strategy_for(TrainerConfig(), alone) == "auto"
    assert isinstance(strategy_for(TrainerConfig(), two), ReplicatedStrategy)
    assert isinstance(strategy_for(TrainerConfig(strategy="ddp"), two), ReplicatedStrategy)
    sharded = strategy_for(TrainerConfig(strategy="fsdp2", cpu_offload=True), two)
    assert isinstance(sharded, ShardedStrategy)
    assert sharded.offload


def test_a_model_that_is_not_sharded_is_left_as_it_is(tiny: LanguageModel) -> None:
    assert not is_sharded(tiny.model)
    assert len(decoder_layers(tiny.model)) == 2
    awaken(tiny.model, torch.device("cpu"))
    with gathered(tiny.model), gathered(tiny.model):
        assert whole(tiny.model.lm_head.weight) is tiny.model.lm_head.weight


def test_gradients_are_clipped_to_the_limit() -> None:
    layer = torch.nn.Linear(3, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 0.0, 4.0]])
    sum_gradients(layer, World())
    assert clip_gradients(layer, 1.0) == pytest.approx(5.0)
    assert layer.weight.grad.norm() == pytest.approx(1.0, rel=1e-4)


def test_a_launcher_says_who_the_processes_are_and_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "sweep", "SLURM_PROCID": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning reads SLURM_PROCID
    world = World()
    assert isinstance(environment_for(world), LightningEnvironment)
    assert rank_zero_only.rank == 0
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert isinstance(environment_for(world), TorchElasticEnvironment)
