"""How many processes a run has, who started them, and starting them where nobody has.

One process a device. torchrun, and `fabric run` on top of it, tell each process its place in environment variables;
`exprl train` with several devices starts itself again under torchrun, so that a rank that dies always stops the others.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory

from exprl.errors import ConfigError
from exprl.experiment import TrainerConfig
from exprl.terminal.console import errors
from exprl.terminal.process import loading


def launched(environment: Mapping[str, str] = os.environ) -> int | None:
    """Processes that a launcher started on this node; None where there was no launcher."""
    started = environment.get("LOCAL_WORLD_SIZE")
    return int(started) if started is not None and "RANK" in environment else None


def devices_here(options: TrainerConfig, environment: Mapping[str, str] = os.environ) -> int:
    """Devices of this node that the run uses.

    Raises:
        ConfigError: `trainer.devices` contradicts the launcher, or there are not as many, or not of that kind.
    """
    from exprl.training import machine  # imports torch

    machine.check_accelerator(options)
    started = launched(environment)
    if started is not None:
        if options.devices not in ("auto", started):
            raise ConfigError(
                f"trainer.devices: {options.devices}, but the launcher (torchrun or fabric run) started {started} "
                f"{'process' if started == 1 else 'processes'} on this node. Leave trainer.devices at auto, or start "
                f"{options.devices}."
            )
        return started
    gpus = machine.gpu_count(options)
    if options.devices == "auto":
        return max(gpus, 1)
    if gpus and options.devices > gpus:
        raise ConfigError(f"trainer.devices: {options.devices}, but this machine has {gpus} GPUs.")
    return options.devices


def start_ranks(count: int, arguments: Sequence[str]) -> int:
    """Run `python -m exprl` with `arguments` in `count` processes; returns the first failure's exit code, or 0."""
    with loading():
        from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it would print tables of its own
    # Each process would take every core for itself otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    try:
        with TemporaryDirectory(prefix="exprl-ranks-", ignore_cleanup_errors=True) as notes:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=count,
                run_id="exprl",
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                max_restarts=0,
                monitor_interval=0.2,
                logs_specs=DefaultLogsSpecs(log_dir=notes),
            )
            elastic_launch(config, sys.executable)("-m", "exprl", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode  # it has said why
        name = signal.Signals(-failure.exitcode).name
        errors().say(f"error: rank {rank} was killed by {name}; the others were stopped. Go on with --resume.")
        return 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0
