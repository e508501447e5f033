"""A plugin for tests: an engine that samples in a process of its own, with weights that only `sync` changes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import torch

from exprl.engines.base import Engine, Sampling
from exprl.engines.transformers import TransformersEngine
from exprl.models.base import LanguageModel
from exprl.registry import ENGINES
from exprl.types import Prompt, Rollout

DONE = None
FORK = multiprocessing.get_context("fork")


@ENGINES.register("elsewhere")
class ElsewhereEngine(TransformersEngine):
    """What `transformers` samples, but elsewhere: nothing is computed in this process."""

    overlaps: ClassVar[bool] = True

    def setup(self) -> None:
        super().setup()
        self.channel, theirs = FORK.Pipe()
        self.process = FORK.Process(target=serve, args=(self.channel, theirs, self.policy, self.config), daemon=True)
        self.process.start()
        theirs.close()

    def sync(self, policy_version: int) -> None:
        super().sync(policy_version)
        weights = {name: value.detach().clone() for name, value in self.policy.model.state_dict().items()}
        self.channel.send((policy_version, {name: value.numpy() for name, value in weights.items()}))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        """As each comes back."""
        self.channel.send((tuple(prompts), sampling))
        return iter(self.channel.recv, DONE)

    def close(self) -> None:
        self.channel.close()
        self.process.join()


def serve(theirs: Connection, channel: Connection, policy: LanguageModel, config: Any) -> None:
    """Until nobody asks any more."""
    theirs.close()
    torch.set_num_threads(1)
    engine: Engine = TransformersEngine.made(config, policy=policy)
    try:
        while True:
            what, how = channel.recv()
            if isinstance(what, int):
                policy.model.load_state_dict({name: torch.from_numpy(value) for name, value in how.items()})
                engine.sync(what)
                continue
            for one in engine.generate(what, how):
                channel.send(one)
            channel.send(DONE)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)
