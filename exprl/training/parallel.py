"""How a run spreads over devices: Lightning strategies, and what the update does differently under each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import PreTrainedModel

from exprl.errors import ConfigError
from exprl.experiment import TrainerConfig
from exprl.models.sharding import is_sharded, shard, whole
from exprl.runs.parts import REST, load_parts
from exprl.training.checkpointing import readable
from exprl.training.launch import launched
from exprl.training.policy import SHARDED_FORWARDS
from exprl.training.world import World


class ReplicatedStrategy(DDPStrategy):
    """Every rank holds all weights. Gradients are summed once an update, by the update itself.

    Lightning's DDP would sum them at every backward pass, in buckets as large as the weights, and would hang where
    ranks have different numbers of micro-batches.

    Args:
        world: the ranks of a run, those that are left of which can save without the others; None: a Trainer of one's
            own, which cannot.
        options: see `DDPStrategy`.
    """

    def __init__(self, world: World | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.world = world

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """The first rank of those that are left writes."""
        if self.world is None:
            super().save_checkpoint(checkpoint, filepath, storage_options)
        elif self.world.first:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Through the run's `World`: gloo's own has no way out where a rank has failed."""
        if self.world is None:
            super().barrier(*args, **kwargs)
        else:
            self.world.barrier(f"{args[0] if args else kwargs.get('name')} of Lightning")

    def configure_ddp(self) -> None:
        """No wrapper; all ranks start from the weights of rank 0."""
        assert self.model is not None
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            dist.broadcast(tensor.detach(), src=0)


class ShardedStrategy(ModelParallelStrategy):
    """Every rank holds a part of weights, gradients and optimizer state (FSDP2)."""

    def __init__(self, ranks: int, *, offload: bool, **options: Any) -> None:
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, **options)
        self.offload = offload

    def model_to_device(self) -> None:
        """Offloaded weights stay in CPU memory."""
        if not self.offload:
            super().model_to_device()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = True) -> dict[str, Any]:
        """As Lightning's own, except that nothing but tensors and plain values is unpickled.

        Raises:
            CheckpointError: it cannot be read so.
        """
        path = Path(self.broadcast(checkpoint_path))
        with readable(path):
            if not path.is_dir():
                return super().load_checkpoint(path, weights_only=True)
            assert self.model is not None
            weights: dict[str, Any] = {"state_dict": get_model_state_dict(self.model)}
            load_parts(weights, path)
            self.model.load_state_dict(weights["state_dict"])
            for index, optimizer in enumerate(self.optimizers):
                moments = {f"optimizer_{index}": get_optimizer_state_dict(self.model, optimizer)}
                load_parts(moments, path)
                set_optimizer_state_dict(
                    self.model,
                    optimizer,
                    optim_state_dict=moments[f"optimizer_{index}"],
                    options=StateDictOptions(cpu_offload=True),
                )
            rest: dict[str, Any] = torch.load(path / REST, weights_only=True)
            return rest


def strategy_for(options: TrainerConfig, world: World) -> Strategy | str:
    """What Lightning's Trainer is given for `trainer.strategy`."""
    if world.size == 1 and options.strategy != "fsdp2":
        return "auto"
    if options.strategy == "fsdp2":
        return ShardedStrategy(world.size, offload=options.cpu_offload)
    return ReplicatedStrategy(world)


def environment_for(world: World) -> ClusterEnvironment:
    """What Lightning is told of the run's processes: those of a launcher, or this one alone.

    Left to itself it takes a task of SLURM, LSF or MPI for one rank of several: a job of several tasks is refused, and
    in all but the first of several runs that share a job its loggers write nothing.
    """
    environment = LightningEnvironment() if launched() is None else TorchElasticEnvironment()
    environment.set_global_rank(world.rank)  # guessed from the job's variables when Lightning was imported
    return environment


def check_strategy(strategy: Strategy) -> None:
    """Raise `ConfigError` for a strategy of Lightning's that exchanges gradients on its own."""
    known = (SingleDeviceStrategy, ReplicatedStrategy, ModelParallelStrategy)
    if not isinstance(strategy, known):
        raise ConfigError(
            f"Trainer(strategy=...): {type(strategy).__name__} exchanges gradients at every backward pass, but the "
            "update sums them itself. Give it ReplicatedStrategy() or ShardedStrategy(...) of exprl.training.parallel."
        )


def shard_for(strategy: Strategy, model: PreTrainedModel, precision: str, *, offload: bool = False) -> None:
    """Shard `model` where the strategy wants it, once; `offload` keeps its parts in CPU memory."""
    if not isinstance(strategy, ModelParallelStrategy) or is_sharded(model):
        return
    mesh = strategy.device_mesh["data_parallel"]
    dtype = torch.bfloat16 if precision.startswith("bf16") else None
    offload = offload or (isinstance(strategy, ShardedStrategy) and strategy.offload)
    shard(model, mesh, dtype=dtype, offload=offload, forwards=SHARDED_FORWARDS)


def place(model: nn.Module, device: torch.device) -> None:
    """Move a model that no strategy moves; sharded ones lie where they belong."""
    if not is_sharded(model):
        model.to(device)


@contextmanager
def on_device(model: nn.Module | None, device: torch.device, *, offload: bool) -> Iterator[None]:
    """Inside, `model` (if there is one) is on `device`; with `offload` it goes back to CPU memory."""
    if model is not None:
        place(model, device)
    try:
        yield
    finally:
        if model is not None and offload:
            place(model, torch.device("cpu"))


def sum_gradients(model: nn.Module, world: World) -> None:
    """Add up every rank's gradients, which FSDP has done already; a rank without one counts as 0.

    A weight that no rank used keeps none, as on one device: with a gradient of 0 AdamW would make it decay.
    """
    if world.size == 1 or is_sharded(model):
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
    used = used.to(trained[0].device)
    dist.all_reduce(used)
    summed = [parameter for parameter, ranks in zip(trained, used.tolist(), strict=True) if ranks]
    for parameter in summed:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for work in [dist.all_reduce(parameter.grad, async_op=True) for parameter in summed]:
        work.wait()


def clip_gradients(model: nn.Module, limit: float) -> float:
    """Scale the gradients to at most this global norm; returns the norm before.

    A norm that is not finite is returned too, and no gradient is worth keeping then.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    return float(whole(norm))


def weights_norm(model: nn.Module) -> float:
    """The norm of the weights that this rank holds: not finite where one is not, or is too large to be squared."""
    held = [parameter.to_local() if hasattr(parameter, "to_local") else parameter for parameter in model.parameters()]
    return float(torch.nn.utils.get_total_norm([tensor.detach() for tensor in held if tensor.numel()]))
