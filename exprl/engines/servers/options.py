"""The options of vLLM servers that sample for a run, read before anything of vLLM or torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from exprl.component import checked, option
from exprl.config.options import Options
from exprl.config.ranges import SMALLEST, NonEmpty, NonNegativeInt, Range, Seconds
from exprl.engines.urls import Credentials, split_credentials
from exprl.errors import ConfigError


@checked
@dataclass(frozen=True, kw_only=True)
class OwnServers:
    """VLLM servers that the run starts on this machine and ends with itself."""

    count: Annotated[int, Range(ge=1, le=1024)] = option(default=1, help="servers", free=True)
    devices: list[NonNegativeInt] = option(
        default=[],
        help="the GPUs they run on, tensor_parallel_size for each server in turn, as the run numbers them; empty: CPUs",
        free=True,
    )
    tensor_parallel_size: Annotated[int, Range(ge=1, le=1024)] = option(
        default=1, help="GPUs that share one server's model", free=True
    )
    gpu_memory_utilization: Annotated[float, Range(gt=0, lt=1)] = option(
        default=0.9, help="share of each GPU's memory for vLLM", free=True
    )
    cpu_kv_cache_gib: Annotated[float, Range(gt=0, le=2**20)] = option(
        default=1.0, help="memory of a server's key-value cache on a CPU, in GiB", free=True
    )
    block_size: Annotated[int, Range(ge=1, le=2**16)] | None = option(
        default=None, help="tokens of one block of the prefix cache; null: 16, on a CPU 32", free=True
    )
    enforce_eager: bool | None = option(
        default=None, help="skip vLLM's compilation and CUDA graphs; null: on a CPU only", free=True
    )
    start_timeout: Seconds = option(default=900.0, help="seconds a server may take to start", free=True)
    restarts: Annotated[int, Range(ge=0, le=1000)] = option(
        default=3,
        help="times a server that died is started again before it is left out (with none left: docs/engines.md)",
        free=True,
    )
    arguments: list[NonEmpty] = option(
        default=[], help="further arguments of vLLM's API server, for example [--max-num-seqs, '256']", free=True
    )

    def __post_init__(self) -> None:
        needed = self.count * self.tensor_parallel_size
        if self.devices and (len(self.devices) != needed or len(set(self.devices)) != needed):
            raise ConfigError(
                f"devices: {self.count} x tensor_parallel_size {self.tensor_parallel_size} need {needed} different "
                f"GPUs, but got {self.devices}."
            )
        if not self.devices and self.tensor_parallel_size > 1:
            raise ConfigError(f"devices: tensor_parallel_size {self.tensor_parallel_size} needs GPUs: name them.")


class FleetOptions(Options):
    """Which servers sample, and how they are asked."""

    urls: list[NonEmpty] = option(
        default=[],
        help="servers that run already, each by its base URL, for example [http://gpu-host:8000]; this or servers",
        free=True,
    )
    servers: OwnServers | None = option(
        default=None, help="servers that the run starts itself, for example {count: 2}; this or urls", free=True
    )
    model: NonEmpty = option(
        default="policy", help="the name by which requests ask for the model (--served-model-name)", free=True
    )
    transfer: Literal["auto", "file", "nccl", "ipc"] = option(
        default="auto",
        help="how weights travel: nccl between GPUs; ipc to servers on the trainer's GPUs; file through memory or a "
        "folder that trainer and servers share; auto: nccl where both have GPUs, else file",
        free=True,
    )
    transfer_bucket_mib: Annotated[int, Range(ge=1, le=2**20)] = option(
        default=256, help="how much of the weights travels at a time, in MiB", free=True
    )
    transfer_folder: NonEmpty = option(
        default="/dev/shm",
        help="file: where weights lie for a moment; servers must see it under the same path",
        free=True,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        default="auto", help="precision the servers compute in; auto: what the model is run in elsewhere"
    )
    max_model_len: Annotated[int, Range(ge=2, le=2**24)] | None = option(
        default=None, help="longest prompt + response in tokens; null: the model's context"
    )
    canary_tolerance: Annotated[float, Range(ge=SMALLEST, le=1000)] | None = option(
        default=None,
        help="mean absolute difference of log-probs at which a server's weights count as wrong; null: by dtype",
        free=True,
    )
    api_key_env: NonEmpty = option(
        default="OPENAI_API_KEY", help="environment variable that holds the key; unset: none is sent", free=True
    )
    concurrency: Annotated[int, Range(ge=1, le=2**16)] = option(
        default=256, help="requests under way at a time at one server, of each rank", free=True
    )
    timeout: Seconds = option(default=1800.0, help="seconds one rollout may take", free=True)
    retries: Annotated[int, Range(ge=0, le=1000)] = option(
        default=2, help="further tries at the same server, which passing faults get, with doubling pauses", free=True
    )
    health_interval: Seconds = option(
        default=5.0, help="seconds between two looks at servers that have requests under way", free=True
    )
    health_timeout: Seconds = option(
        default=20.0, help="seconds without a sign of life after which a server is given up", free=True
    )
    sync_timeout: Seconds = option(
        default=600.0, help="seconds one server may take for each step of a weight update", free=True
    )

    @classmethod
    def check_options(cls, config: Any) -> None:
        """One kind of servers, and URLs parted from users and passwords."""
        if bool(config.urls) == (config.servers is not None):
            raise ConfigError(
                "urls: this or servers, exactly one of the two: rollout.servers.count=2 for servers that the run "
                "starts, or rollout.urls=[http://gpu-host:8000] for servers that run already."
            )
        found = [split_credentials(url, f"urls[{number}]") for number, url in enumerate(config.urls)]
        urls = [url.removesuffix("/v1") for url, _ in found]
        if len(set(urls)) < len(urls):
            raise ConfigError(f"urls: each server once, but got {urls}.")
        object.__setattr__(config, "urls", urls)
        config.__dict__["_credentials"] = [own for _, own in found]

    @property
    def credentials(self) -> list[Credentials | None]:
        """User and password of each URL that was given with them."""
        found: list[Credentials | None] = self.config.__dict__["_credentials"]
        return found
