"""The gradient of a step as a vector, to be compared with another: the whole, a random projection, or the last layers.

It is computed by training's own `PolicyUpdate`, micro-batches and losses included, and of one process, so that it is
the gradient that a run took wherever the weights are those that it had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from exprl.checks.compilers import compile_errors
from exprl.errors import ConfigError, NonFiniteError
from exprl.experiment import UpdateConfig
from exprl.models.base import LanguageModel
from exprl.models.layers import decoder_layers
from exprl.objectives import Objective
from exprl.seeding import derive_seed
from exprl.training.update import PolicyUpdate
from exprl.training.world import World
from exprl.types import ScoredGroup

WHOLE_UP_TO = 2**27
"""Trained parameters whose whole gradient `auto` compares: two vectors of half a GiB each."""
PROJECTED = 2**18
"""Entries of a projected gradient. A cosine of two of them is off by about sqrt((1 + c²) / 2**18), 0.003 at most."""
CHUNK = 2**24
"""Entries multiplied at a time in double precision."""


@dataclass(frozen=True)
class Part:
    """What of a gradient is compared.

    Attributes:
        kind: `auto` is `whole` up to `WHOLE_UP_TO` trained parameters, `projected` beyond.
        layers: how many of the last decoder layers, for `last`.
    """

    kind: Literal["auto", "whole", "projected", "last"]
    layers: int = 0

    @classmethod
    def parse(cls, text: str) -> Part:
        """Of what a user typed; raises `ConfigError`.

        >>> Part.parse("last:2")
        Part(kind='last', layers=2)
        """
        if text in ("auto", "whole", "projected"):
            return cls(text)  # type: ignore[arg-type]  # one of the literals
        name, _, count = text.partition(":")
        if name == "last" and count.isascii() and count.isdigit() and int(count):
            return cls("last", int(count))
        raise ConfigError(
            f"--gradient: auto, whole, projected, or last:N for the last N decoder layers, but got {text!r}."
        )

    def settled(self, model: nn.Module) -> Part:
        """With `auto` decided for `model`; raises `ConfigError` where it has fewer layers than `last` names."""
        if self.kind == "auto":
            return Part("whole" if trained_parameters(model) <= WHOLE_UP_TO else "projected")
        if self.kind == "last" and len(decoder_layers(model)) < self.layers:
            raise ConfigError(
                f"--gradient: last:{self.layers}, but {len(decoder_layers(model))} decoder layers are found in the "
                "policy. Give fewer, or projected."
            )
        return self

    def __str__(self) -> str:
        return f"last:{self.layers}" if self.kind == "last" else self.kind


@dataclass(frozen=True, kw_only=True)
class StepGradient:
    """Computes the gradients of steps, for one policy with the weights it has when asked.

    Args:
        policy: on `device`, in the precision that it trained in.
        initial_policy: frozen, on `device`; for objectives with a KL term.
        options: as the run had them.
        temperature: of the rollouts.
        length_limit: of the rollouts, in tokens.
        precision: `trainer.precision` of the run.
        part: what is compared, settled.
        device: where it computes.
        seed: of the projection.
    """

    policy: LanguageModel
    initial_policy: LanguageModel | None
    options: UpdateConfig
    temperature: float
    length_limit: int
    precision: str
    part: Part
    device: torch.device
    seed: int = 0

    def of(self, scored: Sequence[ScoredGroup], objective: Objective, where: str) -> Tensor:
        """[D] float32 on the CPU: the sum of the gradients of the step's updates, all at the weights as they are.

        With one update a step it is the gradient that training clips and hands to the optimizer. A step without a
        learning signal has one of zeros.

        Raises:
            NonFiniteError: it is not finite; `where` says of what it is.
        """
        computing = PolicyUpdate(
            self.policy,
            objective,
            self.options,
            temperature=self.temperature,
            world=World(),
            device=self.device,
            length_limit=self.length_limit,
        )
        updates, _ = computing.plan(scored)
        model = self.policy.model
        with (
            collecting(model, self.part, seed=self.seed) as collected,
            forward_context(self.precision, self.device),
            compile_errors(),
        ):
            for update in updates:
                initial = None
                if objective.needs_initial_policy and self.initial_policy is not None:
                    initial = computing.frozen_logprobs(self.initial_policy, update)
                computing.accumulate(update, _backward, initial=initial)
            gradient = collected()
        if not math.isfinite(size := norm(gradient)):
            raise NonFiniteError(
                f"{where}: the norm of the gradient is {size}. Nothing is trained here: it comes of the advantages of "
                "these rollouts (exprl rollouts shows them), their log-probs, the objective's options, or a precision "
                f"that is too small for them (trainer.precision={self.precision})."
            )
        return gradient


def _backward(loss: Tensor) -> None:
    loss.backward()


def forward_context(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """What Lightning's Trainer puts around a training step of `trainer.precision`."""
    if precision != "bf16-mixed":
        return nullcontext()
    return MixedPrecision("bf16-mixed", device.type).forward_context()


# ------------------------------------------------------------------ from backward passes to a vector


@contextmanager
def collecting(model: nn.Module, part: Part, *, seed: int) -> Iterator[Callable[[], Tensor]]:
    """Inside, backward passes add up, and what is given returns their sum as a vector; no gradient stays behind."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad(set_to_none=True)
    try:
        if part.kind == "projected":
            with projecting(trained, seed) as sketch:
                yield sketch.cpu
        elif part.kind == "last":
            with only(last_layers(model, part.layers), trained) as kept:
                yield partial(flat_gradient, kept)
        else:
            yield partial(flat_gradient, trained)
    finally:
        model.zero_grad(set_to_none=True)


def flat_gradient(parameters: Sequence[nn.Parameter]) -> Tensor:
    """[D] all gradients one after the other, zeros for parameters without one."""
    sizes = [parameter.numel() for parameter in parameters]
    flat = torch.zeros(sum(sizes))
    for parameter, place in zip(parameters, flat.split(sizes), strict=True):
        if parameter.grad is not None:
            place.copy_(parameter.grad.flatten())
    return flat


def last_layers(model: nn.Module, count: int) -> list[nn.Parameter]:
    """The trained parameters of the last `count` decoder layers."""
    layers = decoder_layers(model)[-count:]
    return [parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad]


@contextmanager
def only(kept: Sequence[nn.Parameter], trained: Sequence[nn.Parameter]) -> Iterator[Sequence[nn.Parameter]]:
    """Inside, of `trained` parameters `kept` alone have gradients, so that backward stops below them."""
    wanted = {id(parameter) for parameter in kept}
    others = [parameter for parameter in trained if id(parameter) not in wanted]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield kept
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@contextmanager
def projecting(parameters: Sequence[nn.Parameter], seed: int) -> Iterator[Tensor]:
    """Inside, gradients are added to the projection that is given, and freed, as soon as backward has made them.

    Each parameter's gradient is cut into rows of `PROJECTED` entries; a row gets random signs and a random rotation,
    and is added. That is a count sketch (Charikar, Chen, Farach-Colton 2002) whose buckets are rotated together: inner
    products are right on average, and memory is that of one parameter's gradient, whatever the model.
    """
    device = parameters[0].device if parameters else torch.device("cpu")
    sketch = torch.zeros(PROJECTED, device=device)

    def take(number: int, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        add_projected(sketch, parameter.grad.float().flatten(), derive_seed(seed, "projection", number))
        parameter.grad = None

    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(take, number))
        for number, parameter in enumerate(parameters)
    ]
    try:
        yield sketch
    finally:
        for hook in hooks:
            hook.remove()


def add_projected(sketch: Tensor, vector: Tensor, seed: int) -> None:
    """Add the projection of a vector [D] to `sketch`, in place; the same seed, the same projection."""
    signs = torch.Generator(vector.device).manual_seed(seed)
    rotations = torch.Generator().manual_seed(seed)
    size = len(sketch)
    for row in vector.split(size):
        signed = row * (torch.randint(2, row.shape, generator=signs, device=row.device) * 2 - 1)
        shift = int(torch.randint(size, (), generator=rotations))
        head = min(size - shift, len(row))
        sketch[shift : shift + head] += signed[:head]
        sketch[: len(row) - head] += signed[head:]


# ------------------------------------------------------------------ two vectors


def inner(one: Tensor, other: Tensor) -> float:
    """Their inner product in double precision."""
    parts = zip(one.split(CHUNK), other.split(CHUNK), strict=True)
    return math.fsum(float(first.double() @ second.double()) for first, second in parts)


def norm(vector: Tensor) -> float:
    """Its length."""
    return math.sqrt(inner(vector, vector))


def trained_parameters(model: nn.Module) -> int:
    """How many numbers train, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
