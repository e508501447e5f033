"""A plugin for tests: makes a run die, stall or fail at the place that the environment variable FAULT names.

FAULT is `what:where:step[:rank]`, for example `kill:sampling:2` or `stall:judging:3:1`, or several of them, with spaces
between; what happens only once, like loading the model, happens in step 1. With `hurry` a rank waits for others
`HURRY` seconds from there on: what is to come before that has the time of a busy machine.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

HURRY = 4.0


def _act(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stall":
        time.sleep(1000)
    elif what == "hurry":
        import torch.distributed.distributed_c10d as c10d

        from exprl.training.world import World

        [world] = [one for one in gc.get_objects() if isinstance(one, World)]
        world.timeout = HURRY
        for group in (None, world._group):
            c10d._set_pg_timeout(timedelta(seconds=HURRY), group)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        raise RuntimeError("this machine is on fire")


def _around(owner: Any, name: str, at: Callable[[Any], bool], what: str) -> None:
    original = getattr(owner, name)
    happened = []

    def faulty(*args: Any, **kwargs: Any) -> Any:
        if at(args[0]) and not happened:
            happened.append(what)
            _act(what)
        return original(*args, **kwargs)

    setattr(owner, name, faulty)


def _install(fault: str) -> None:
    what, where, step, *rank = fault.split(":")
    if rank and os.environ.get("RANK", "0") != rank[0]:
        return  # nor is anything imported: the process that starts the ranks needs none of this
    import torch

    from exprl import build
    from exprl.engines.transformers import TransformersEngine
    from exprl.training import checkpointing, update
    from exprl.training.collecting import Collector
    from exprl.training.module import ExpRLModule
    from exprl.training.policy_module import PolicyModule

    before = int(step) - 1
    if where == "loading":
        _around(build, "check_vocabulary", lambda policy: True, what)
    elif where == "evaluating":
        _around(build.Build, "evaluate", lambda parts: True, what)
    elif where == "digesting":
        _around(checkpointing, "digests", lambda written: written.stem == f"step-{int(step):06d}", what)
    elif where in ("sampling", "judging", "syncing"):
        begun = {"now": 0}
        _around(ExpRLModule, "training_step", lambda module: begun.update(now=module.steps_done + 1) or False, what)
        places = {"sampling": "sample", "judging": "score", "syncing": "sync"}
        owner = TransformersEngine if where == "syncing" else Collector
        _around(owner, places[where], lambda _: begun["now"] == before + 1, what)
    elif where == "updating":
        _around(PolicyModule, "update_once", lambda module: module.steps_done == before, what)
    elif where == "gradients":
        steps = {"now": 0}
        _around(PolicyModule, "update_policy", lambda module: steps.update(now=module.steps_done + 1) or False, what)
        _around(update.PolicyUpdate, "token_loss", lambda _: steps["now"] == before + 1, what)
    elif where == "loss":
        accumulate = update.PolicyUpdate.accumulate

        def spoiled(self: update.PolicyUpdate, *args: Any, **options: Any) -> dict[str, float]:
            sums = accumulate(self, *args, **options)
            return {**sums, "loss": float("nan")} if self.world.phase.endswith(f"step {step}") else sums

        update.PolicyUpdate.accumulate = spoiled  # type: ignore[method-assign]
    elif where == "writing":
        save = torch.save

        def half(content: Any, *args: Any, **kwargs: Any) -> None:
            save({**content, "state_dict": {}}, *args, **kwargs)
            _act(what)

        def faulty(content: Any, *args: Any, **kwargs: Any) -> None:
            done = content["exprl"]["steps_done"] if isinstance(content, dict) and "exprl" in content else -1
            (half if done == before + 1 else save)(content, *args, **kwargs)

        torch.save = faulty
    else:
        raise ValueError(fault)


for one in os.environ.get("FAULT", "").split():
    _install(one)
