"""Options that this machine cannot do are refused before a model is loaded or sampled from."""

import pytest
import torch

from exprl.errors import ConfigError
from exprl.experiment import TrainerConfig, UpdateConfig
from exprl.training.launch import devices_here
from exprl.training.machine import check_accelerator, check_kernels

CPU = torch.device("cpu")


@pytest.mark.parametrize("accelerator", ["cuda", "mps", "gpu"])
def test_an_accelerator_that_is_not_there(accelerator, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"^trainer\.accelerator: {accelerator}, but PyTorch .* finds none"):
        devices_here(TrainerConfig(accelerator=accelerator), {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator != "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: accelerator == "mps")
    check_accelerator(TrainerConfig(accelerator=accelerator))


def test_triton_on_a_cpu(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"^update\.kernels: triton cannot run here: "):
        check_kernels(UpdateConfig(kernels="triton"), CPU, torch.float32)
    for kernels in ("auto", "eager", "compile"):
        check_kernels(UpdateConfig(kernels=kernels), CPU, torch.float32)


@pytest.mark.parametrize("precision", ["16-true", "64-true", "bf16", "garbage", 32])
def test_a_precision_that_is_not_one_of_them(precision) -> None:
    with pytest.raises(ConfigError, match=rf"^precision: got {precision!r}\..*32-true, bf16-mixed"):
        TrainerConfig(precision=precision)
