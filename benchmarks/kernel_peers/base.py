"""What an adapter is, what it is given and what it gives back."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Task = Literal["linear", "rkl", "logits", "policy", "fkl", "jsd"]
"""In the order they are measured."""

TITLES: dict[Task, str] = {
    "linear": "(b) log-prob and entropy from hidden states",
    "rkl": "(d) KL(policy ‖ frozen) of two heads",
    "logits": "(a) log-prob and entropy from logits",
    "policy": "(c) policy loss of tokens",
    "fkl": "(d) KL(frozen ‖ policy) of two heads",
    "jsd": "(d) Jensen-Shannon divergence of two heads",
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """T tokens, D hidden, V vocabulary; `dtype` is a name of torch."""

    tokens: int
    hidden: int
    vocabulary: int
    dtype: str


class Outputs(NamedTuple):
    """What a forward pass gives; None where the peer does not compute it. Every one present gets a gradient.

    `logp`, `entropy`, `divergence` and `loss` (the policy loss) are [T]; `mean` is a number: minus the mean log-prob,
    or the mean divergence, from peers that cannot weight tokens.
    """

    logp: Tensor | None = None
    entropy: Tensor | None = None
    divergence: Tensor | None = None
    loss: Tensor | None = None
    mean: Tensor | None = None

    @property
    def kind(self) -> str:
        """The outputs that are present, which is what the exact gradient depends on."""
        return "+".join(name for name in self._fields if getattr(self, name) is not None)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Inputs of one task at one size, and the gradient that arrives at each output.

    `inputs` get a gradient: (logits [T, V],), (hidden [T, D], weight [V, D]) or (logp [T],). `ids` [T] are the chosen
    tokens, `frozen` the other head's (hidden, weight), `policy` the other arguments of the policy loss.
    """

    task: Task
    size: Size
    inputs: tuple[Tensor, ...]
    ids: Tensor
    frozen: tuple[Tensor, Tensor] | None = None
    policy: PolicyArguments | None = None
    upstream: Outputs

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return self.ids.device


DUAL_CLIP, KL_COEF = 3.0, 1e-3
"""Of the policy loss; its other options are exprl's defaults: clips 0.2 and 0.28, k3."""


class PolicyArguments(NamedTuple):
    """Each [T]."""

    old_logp: Tensor
    advantages: Tensor
    mask: Tensor
    is_weight: Tensor
    initial_logp: Tensor


Forward = Callable[[Problem], Outputs]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One peer's function for one task."""

    peer: str
    """Name in the tables."""
    task: Task
    load: Callable[[], Forward]
    """Imports the peer; raises ImportError where it is absent."""
    on_cpu: bool = False
    note: str = ""
    """What it lacks, for the tables."""
    overwrites: bool = False
    """Writes into its inputs, which are restored between calls."""
    limit: bool = False
    """Moves the bytes or does the products that no implementation can avoid; its results mean nothing."""


def without_init(package: str, *subpackages: str) -> None:
    """Make a package importable without running its `__init__`, which imports much more than the kernels need.

    The modules inside are the package's own, unchanged.

    Raises:
        ImportError: the package is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"no module named {package!r}")
    for name in (package, *subpackages):
        if name in sys.modules:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError(f"no package {name!r}")
        module = types.ModuleType(name)
        module.__path__ = list(spec.submodule_search_locations)
        module.__spec__ = spec
        sys.modules[name] = module


def missing(*packages: str) -> list[str]:
    """Those that cannot be found."""
    return [name for name in packages if name not in sys.modules and importlib.util.find_spec(name) is None]
