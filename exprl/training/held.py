"""The models whose weights a rank holds, and where they lie when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from lightning.pytorch.strategies import Strategy
from transformers import PreTrainedModel

from exprl.models.base import LanguageModel
from exprl.models.sharding import awaken, gathered
from exprl.training.parallel import on_device, place, shard_for


@dataclass(frozen=True, kw_only=True)
class HeldModels:
    """The policy and the frozen initial policy.

    Attributes:
        policy: in training; a Trainer puts it on its device.
        frozen: the initial policy's own weights; None without one, and where it is the policy without its adapter.
        offload: whether those lie in CPU memory while they are not used.
    """

    policy: PreTrainedModel
    frozen: PreTrainedModel | None
    offload: bool

    @classmethod
    def of(cls, policy: PreTrainedModel, initial: LanguageModel | None, *, offload: bool) -> HeldModels:
        """Those of a policy and the initial policy, if that is needed."""
        own = None if initial is None or initial.model is policy else initial.model
        return cls(policy=policy, frozen=own, offload=offload)

    @contextmanager
    def whole(self, device: torch.device) -> Iterator[None]:
        """Inside, this rank holds all weights of both, on `device`."""
        with ExitStack() as stack:
            stack.enter_context(gathered(self.policy))
            if self.frozen is not None:
                stack.enter_context(self.frozen_on(device))
                stack.enter_context(gathered(self.frozen))
            yield

    def frozen_on(self, device: torch.device) -> AbstractContextManager[None]:
        """Inside, the frozen weights, if there are any, are on `device`."""
        return on_device(self.frozen, device, offload=self.offload)

    def shard(self, strategy: Strategy, precision: str) -> None:
        """Shard both where the strategy shards."""
        shard_for(strategy, self.policy, precision)
        if self.frozen is not None:
            shard_for(strategy, self.frozen, precision, offload=self.offload)

    def awaken(self, device: torch.device) -> None:
        """Put both where they lie between steps, when training starts."""
        awaken(self.policy, device)
        if self.frozen is not None:
            awaken(self.frozen, device)
            place(self.frozen, torch.device("cpu") if self.offload else device)
