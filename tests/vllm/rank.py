"""One rank of a run with several: `python -m tests.vllm.rank late|early|sharded`, in an environment like torchrun's.

Prints one line of JSON. Every rank has other work: another number of prompts, and on rank 0 alone a judge's engine.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import sys
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from exprl.engines.vllm import VLLMEngine
from exprl.engines.vllm_host import VLLMHost
from exprl.engines.vllm_options import HostOptions
from exprl.models.base import LanguageModel
from exprl.models.sharding import shard
from exprl.training.policy import SHARDED_FORWARDS
from tests.vllm.helpers import (
    engine_logprobs,
    engine_of,
    flat,
    gap,
    prompt,
    sample,
    small_policy,
    trainer_logprobs,
)
from tests.waiting import LONG

LIMIT = timedelta(seconds=LONG)


def everyone(value: float) -> float:
    total = torch.tensor([value])
    dist.all_reduce(total)
    return float(total)


def move(policy: LanguageModel, amount: float) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1 + amount)


def freeze_imports() -> None:
    """As in `conftest`: nine tenths of what an engine's end and the next one's start cost is garbage among imports."""
    gc.collect()
    gc.freeze()
    gc.freeze = gc.unfreeze = lambda: None  # type: ignore[assignment]


def main(order: str) -> dict[str, Any]:
    freeze_imports()
    rank = int(os.environ["RANK"])
    policy = small_policy()
    engine = engine_of(policy)
    if order == "early":  # as when a run evaluates before Lightning has made its groups
        engine.host.start()
        assert not dist.is_initialized(), "Lightning would take vLLM's group for one of its own"
    dist.init_process_group("gloo", timeout=LIMIT)
    if order == "sharded":
        return sharded(policy, engine)
    found: dict[str, Any] = {"rank": rank, "world": dist.get_world_size(), "gaps": [], "tokens": []}
    questions = [prompt(policy.tokenizer, f"<user>{rank} of {k}<end><assistant>", str(k)) for k in range(1 + 2 * rank)]
    for version in (1, 2):
        move(policy, 0.05)
        engine.sync(version)
        rollouts = flat(sample(engine, questions, n=2 + rank, max_new_tokens=20 + 10 * rank, seed=version))
        found["gaps"].append(gap(engine_logprobs(rollouts), trainer_logprobs(policy, rollouts, 1.0)))
        found["tokens"].append([r.token_ids for r in rollouts])
        found.setdefault("sums", []).append(everyone(rank + 1))
    if rank == 0:
        judge = VLLMHost(small_policy(seed=5), HostOptions(cpu_kv_cache_gib=0.1, max_model_len=256))
        judge.start()
        judge.close()
        sample(engine, questions, n=1, max_new_tokens=4)
    pair = dist.new_group(backend="gloo", timeout=LIMIT)  # by number: the ranks must still count alike
    engine.close()
    gc.collect()
    found["sums"].append(everyone(rank + 1))
    total = torch.tensor([10.0 * (rank + 1)])
    dist.all_reduce(total, group=pair)
    found["pair"] = float(total)
    found["again"] = len(flat(sample(engine, questions, n=1, max_new_tokens=4)))
    dist.destroy_process_group()  # before the engine ends
    engine.close()
    found["left"] = dist.is_initialized()
    return found


def sharded(policy: LanguageModel, engine: VLLMEngine) -> dict[str, Any]:
    """Weights that lie in parts on both ranks are streamed whole, by both together."""
    known = copy.deepcopy(policy)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shard(policy.model, mesh, dtype=None, offload=False, forwards=SHARDED_FORWARDS)
    found: dict[str, Any] = {"gaps": [], "sharded": []}
    questions = [prompt(policy.tokenizer, f"<user>{k}<end><assistant>") for k in range(1 + dist.get_rank())]
    for version in (0, 1, 2):
        if version:
            for each in (policy, known):
                move(each, 0.05)
        engine.sync(version)
        rollouts = flat(sample(engine, questions, n=2, max_new_tokens=20, seed=version))
        found["gaps"].append(gap(engine_logprobs(rollouts), trainer_logprobs(known, rollouts, 1.0)))
        found["sharded"].append(isinstance(policy.model.model.norm.weight, DTensor))
    engine.close()
    found["sum"] = everyone(1.0)
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
    sys.stdout.flush()
    time.sleep(0.5)  # gloo's threads free tensors late; one that comes to it while the interpreter ends aborts it
