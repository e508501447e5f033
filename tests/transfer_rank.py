"""One of two ranks whose sharded policy goes to a server: `python -m tests.transfer_rank`, as torchrun starts it.

Prints one line of JSON. The first rank has the server in its process, real HTTP between them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from exprl.engines.transfer.base import TransferError
from exprl.engines.transfer.buckets import Bucket, read_bucket
from exprl.engines.transfer.control import ControlPlane
from exprl.engines.transfer.files import FileTransfer
from exprl.engines.transfer.weights import policy_weights, tied_names
from exprl.models.base import LanguageModel
from exprl.models.sharding import is_sharded, shard
from exprl.training.policy import SHARDED_FORWARDS
from tests.control_server import ControlServer, control_servers
from tests.vllm.helpers import small_policy
from tests.waiting import LONG


def main() -> dict[str, Any]:
    dist.init_process_group("gloo", timeout=timedelta(seconds=LONG))
    policy = small_policy()
    before = {name: tensor.clone() for name, tensor in policy_weights(policy)}
    shard(policy.model, init_device_mesh("cpu", (2,)), dtype=None, offload=False, forwards=SHARDED_FORWARDS)
    with ExitStack() as stack:
        if dist.get_rank() == 0:
            found = serve(policy, before, stack.enter_context(control_servers())[0])
        else:
            found = gather(policy)
    everyone = torch.tensor([1.0])
    dist.all_reduce(everyone)  # nobody is left in another one's collective
    return {**found, "sharded": is_sharded(policy.model), "ranks": float(everyone)}


def serve(policy: LanguageModel, before: Mapping[str, Tensor], server: ControlServer) -> dict[str, Any]:
    transfer = FileTransfer(tied=tied_names(policy.model), bucket_bytes=40_000)
    control, loaded = ControlPlane(server.url, timeout=LONG), {}

    def load(body: Any) -> None:
        info = body["update_info"]
        if info:
            bucket = Bucket(file=info["file"], size=info["size"], digest=info["digest"])
            loaded.update(read_bucket(Path(server.calls[0][1]["init_info"]["folder"]), bucket))

    server.faults["/update_weights"] = load
    transfer.connect([control])
    transfer.send(policy_weights(policy), [control], 1)
    same = loaded.keys() == before.keys() and all(torch.equal(loaded[name], before[name]) for name in before)
    server.faults["/update_weights"] = lambda body: (500, None)
    try:
        transfer.send(policy_weights(policy), [control], 2)
    except TransferError:
        transfer.close()
        return {"same": same, "failed": True}
    return {"same": same, "failed": False}


def gather(policy: LanguageModel) -> dict[str, Any]:
    transfer = FileTransfer(rank=1)
    transfer.connect([])
    for version in (1, 2):
        transfer.send(policy_weights(policy), [], version)
    return {}


if __name__ == "__main__":
    print(json.dumps({"rank": int(os.environ["RANK"]), **main()}))
