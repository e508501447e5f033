"""Starting a vLLM engine, and keeping what it does to a process away from the run."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exprl.engines import vllm_lora
from exprl.engines.architecture import write_architecture
from exprl.engines.vllm_classes import classes_kept
from exprl.engines.vllm_groups import engine_groups
from exprl.errors import EngineError, one_line
from exprl.models.lora import adapter_config

if TYPE_CHECKING:
    from exprl.engines.vllm_options import HostOptions
    from exprl.models.base import LanguageModel

_RANKS_HERE = "LOCAL_WORLD_SIZE"
"""A launcher's variable, which vLLM sets to its own 1; child processes would take it for their launcher's."""


def start_engine(
    language_model: LanguageModel, options: HostOptions, folder: str, *, dtype: str, max_model_len: int, adapted: bool
) -> Any:
    """A vLLM `LLM` of the model's architecture without its weights, which are streamed in later.

    Args:
        language_model: what it is to compute.
        options: how it is set up.
        folder: empty; is given configuration and tokenizer, and must stay while the engine lives.
        dtype: precision.
        max_model_len: longest prompt plus response, in tokens.
        adapted: whether there is an adapter beside the base.

    Raises:
        EngineError: vLLM refuses the options, such as a cache that holds no sequence of this length.
    """
    set_environment()
    from vllm import LLM

    from exprl.engines.vllm_executor import LocalExecutor

    write_architecture(language_model, folder)  # the weights are streamed in by `load`
    on_gpu = torch.cuda.is_available()
    memory: dict[str, Any] = (
        {"gpu_memory_utilization": options.gpu_memory_utilization}
        if on_gpu
        else {"kv_cache_memory_bytes": int(options.cpu_kv_cache_gib * 2**30)}
    )
    threads, ranks = torch.get_num_threads(), os.environ.get(_RANKS_HERE)
    # vLLM looks for garbage half a dozen times as it starts: a third of a second each among a million imported objects.
    gc.collect()
    gc.freeze()
    with classes_kept(language_model.model), _refusals_named(language_model.name, max_model_len, memory):
        llm = LLM(
            model=folder,
            trust_remote_code=False,
            load_format="dummy",
            dtype=dtype,
            max_model_len=max_model_len,
            enforce_eager=not on_gpu if options.enforce_eager is None else options.enforce_eager,
            block_size=options.block_size or (16 if on_gpu else 32),
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",  # of the distribution that was sampled from, temperature included
            disable_log_stats=False,
            seed=0,
            distributed_executor_backend=LocalExecutor,
            enable_sleep_mode=options.enable_sleep_mode and can_sleep(),
            **memory,
            **(vllm_lora.options(adapter_config(language_model.model)) if adapted else {}),
        )
    torch.set_num_threads(threads)
    os.environ.pop(_RANKS_HERE, None)
    if ranks is not None:
        os.environ[_RANKS_HERE] = ranks
    return llm


@contextmanager
def _refusals_named(model: str, max_model_len: int, memory: dict[str, Any]) -> Iterator[None]:
    """What vLLM says of options, in one line with those that are meant."""
    try:
        yield
    except ValueError as error:
        own = "gpu_memory_utilization" if "gpu_memory_utilization" in memory else "cpu_kv_cache_gib"
        raise EngineError(
            f"vLLM refuses to start for {model}: {one_line(error)} Its options here: {own}, "
            f"max_model_len ({max_model_len}), of rollout or of the judge's backend."
        ) from error


def can_sleep() -> bool:
    """Whether there is GPU memory to give back."""
    return torch.cuda.is_available()


@contextmanager
def isolated() -> Iterator[None]:
    """What vLLM does inside changes neither the run's process groups nor its random states."""
    with engine_groups(), random_states_kept():
        yield


@contextmanager
def random_states_kept() -> Iterator[None]:
    """VLLM seeds and draws from the global generators; a run's own states are what they would be without it."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    python, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)


def set_environment() -> None:
    """What vLLM reads when it is imported."""
    # In this process: the engine then reads the policy's tensors where they are, and nothing is left behind.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
