"""One rank whose servers follow a policy: `python -m tests.unit.server_rank URL ...`, as torchrun would.

Prints one line of JSON: what it found with whole weights on each rank, then with sharded ones. Every rank moves its own
whole copy of the policy alike, by which it knows what the servers must have.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from exprl.engines import VLLMServerEngine
from exprl.errors import EngineError
from exprl.models.base import LanguageModel
from exprl.models.sharding import shard
from exprl.training.policy import SHARDED_FORWARDS
from tests.unit.test_vllm_server import move, prompts
from tests.vllm.helpers import engine_logprobs, flat, gap, sample, small_policy, trainer_logprobs
from tests.waiting import LONG


def main(urls: list[str]) -> dict[str, Any]:
    dist.init_process_group("gloo", timeout=timedelta(seconds=LONG))
    policy = small_policy()
    known = copy.deepcopy(policy)
    found: dict[str, Any] = {"plain": follow(policy, known, urls, 0)}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shard(policy.model, mesh, dtype=None, offload=False, forwards=SHARDED_FORWARDS)
    found["sharded"] = follow(policy, known, urls, 10)
    dist.barrier()
    dist.destroy_process_group()
    return found


def follow(policy: LanguageModel, known: LanguageModel, urls: list[str], first: int) -> dict[str, Any]:
    engine = VLLMServerEngine(urls=urls, timeout=LONG, retries=1, health_timeout=LONG, policy=policy)
    with pytest.raises(EngineError) as told:
        sample(engine, prompts(policy, 1), n=1, max_new_tokens=2)
    found: dict[str, Any] = {"before": str(told.value), "gaps": [], "tokens": []}
    for version in range(first, first + 3):
        for each in (policy, known):
            move(each, 0.05)
        engine.sync(version)
        seed = 10 * version + dist.get_rank()
        rollouts = flat(sample(engine, prompts(policy, 2), n=2, max_new_tokens=6, seed=seed))
        found["gaps"].append(gap(engine_logprobs(rollouts), trainer_logprobs(known, rollouts, 1.0)))
        found["tokens"].append(sorted(rollout.token_ids for rollout in rollouts))
    found["counts"] = engine.counts()
    dist.barrier()
    engine.close()
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
    sys.stdout.flush()
    time.sleep(0.5)  # gloo's threads free tensors late; one that comes to it while the interpreter ends aborts it
