"""How many processes, and who started them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.launcher import api

from exprl.errors import ConfigError
from exprl.experiment import TrainerConfig
from exprl.training.launch import devices_here, launched, start_ranks

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}


def test_without_a_launcher_the_config_counts() -> None:
    cpu = "cpu"
    assert launched({}) is None
    assert devices_here(TrainerConfig(accelerator=cpu), {}) == 1
    assert devices_here(TrainerConfig(accelerator=cpu, devices=3), {}) == 3


def test_a_launcher_says_how_many_there_are_on_this_node() -> None:
    assert launched(TORCHRUN) == 4
    assert devices_here(TrainerConfig(), TORCHRUN) == 4
    assert devices_here(TrainerConfig(devices=4), TORCHRUN) == 4


def test_contradictions_are_named() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.devices: 2, but the launcher .* started 4 processes"):
        devices_here(TrainerConfig(devices=2), TORCHRUN)
    with pytest.raises(ConfigError, match=r"^devices: must be in \[1, "):
        TrainerConfig(devices=0)


def test_cpu_offload_needs_sharding() -> None:
    with pytest.raises(ValueError, match="fsdp2"):
        TrainerConfig(cpu_offload=True)
    with pytest.raises(ValueError, match="timeout"):
        TrainerConfig(timeout=0.0)


def test_nothing_of_the_launcher_stays_when_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def launch(config: api.LaunchConfig, _: str) -> Callable[..., Any]:
        assert config.logs_specs is not None
        folders.append(Path(config.logs_specs.root_log_dir))
        (folders[0] / "error.json").write_text("{}")

        def stopped(*_: str) -> None:
            raise SignalException("stopped", signal.SIGTERM)

        return stopped

    monkeypatch.setattr(api, "elastic_launch", launch)
    assert start_ranks(2, ["train"]) == 128 + signal.SIGTERM
    assert folders
    assert not folders[0].exists()
