"""The engine contract: who samples rollouts."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from exprl.checks.contracts import given_by
from exprl.component import Component, option, title_of
from exprl.config.ranges import NonEmpty, NonNegativeInt, Range, Samples, Temperature, Tokens, TopP
from exprl.errors import ContractError, ModelError
from exprl.types import Prompt, Rollout

if TYPE_CHECKING:
    from exprl.terminal.phases import Recorder


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample: `n` rollouts a prompt, at most `max_new_tokens` tokens each.

    `top_p` and `top_k` truncate; the log-probs an engine reports are those of the distribution sampled from, with
    temperature and truncation applied. `seed` makes a call repeatable on one machine. A rollout's random numbers derive
    from it, the prompt's number and the place in the prompt's group; `numbers` are those of the prompts, by default
    their places in the call. Ranks that share the prompts of one call pass the places in the whole, so that each
    rollout is the one that a single rank would sample.
    """

    n: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024
    stop: tuple[str, ...] = ()
    seed: int = 0
    numbers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("n", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, but got {getattr(self, name)}")

    def number(self, index: int) -> int:
        """The number of a call's prompt `index` that its random numbers derive from."""
        return index if self.numbers is None else self.numbers[index]


class Engine(Component):
    """Samples rollouts from prompts. It accepts `Prompt` alone, so no problem and no scaffold can reach it.

    The options of sampling are those that a run makes its `Sampling` of; `generate` goes by the one it is given.
    """

    registered_family: ClassVar[str] = "engine"

    trains: ClassVar[bool] = True
    """Whether its weights follow the policy, so that a run can train on its rollouts."""

    overlaps: ClassVar[bool] = False
    """Whether it can sample in one thread while the policy updates in another: it computes elsewhere, with weights of
    its own."""

    samples_per_prompt: Samples = option(default=8, help="rollouts sampled for each prompt (G, the group size)")
    temperature: Temperature = option(
        default=1.0, help="sampling temperature; log-probs are of the tempered distribution"
    )
    top_p: TopP = option(default=1.0, help="nucleus sampling; 1 is off")
    top_k: NonNegativeInt = option(default=0, help="keep the k likeliest tokens; 0 is off")
    max_new_tokens: Tokens = option(default=1024, help="length limit of a rollout in tokens")
    stop: list[NonEmpty] = option(default=[], help="strings that end a rollout, besides the end-of-sequence token")
    lookahead: Annotated[int, Range(ge=0, le=1)] = option(
        default=0,
        help="1: sample and judge one step ahead, by the policy before the last update, beside the update where engine "
        "and judge compute elsewhere; 0: by the policy that is updated. sft ignores it",
    )

    @property
    def precision(self) -> str | None:
        """The dtype it computes in, such as bfloat16; None: that of the policy."""
        return None

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        """Yield `(index of the prompt, rollout)` as each rollout finishes: `len(prompts) * sampling.n` in all.

        A rollout's `place` is its place in the prompt's group, which its random numbers derive from, so that a group
        has one order, whatever finishes first. Where it says none, groups are in the order in which rollouts come.
        """

    def counts(self) -> dict[str, float]:
        """What it has counted on this rank since the last call, by name; a step logs the sum over ranks."""
        return {}

    def close(self) -> None:
        """Free what the engine holds beside the policy; called when a run ends, also by an error."""

    def sleep(self) -> None:
        """Free what memory it can while the policy updates; the `sync` after that, or its next use, takes it back."""

    def record_to(self, row: Callable[[str], Recorder]) -> None:
        """Have it taken down when servers that it asks are busy, in a row each; one that asks none has nothing to do.

        Args:
            row: gives what takes down the phases of the row of this name.
        """

    def sync(self, policy_version: int) -> None:
        """Take over the policy's current weights, those after `policy_version` steps; later rollouts carry it."""


def generated(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
    """What `engine.generate` yields.

    Raises:
        ContractError: it makes a rollout that is none, with token ends beyond its text for example; it is named.
    """
    with given_by(f"engine {title_of(engine)}"):
        yield from engine.generate(prompts, sampling)


def by_place(rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
    """All rollouts of a prompt in the order of their places; as they came where they say none.

    Raises:
        ContractError: some say one and others none, or they are not 0, 1, 2, ..., each once.
    """
    places = [rollout.place for rollout in rollouts]
    if all(place is None for place in places):
        return tuple(rollouts)
    at = dict(zip(places, rollouts, strict=True))
    if at.keys() != set(range(len(rollouts))):
        raise ContractError(
            f"place: the {len(rollouts)} rollouts of a group say 0 to {len(rollouts) - 1}, each once, or all of them "
            f"None, but got {places}"
        )
    return tuple(at[place] for place in range(len(rollouts)))


def check_request(
    prompts: Sequence[Prompt], sampling: Sampling, *, context: int | None, whose: str, hottest: float = math.inf
) -> None:
    """What every engine checks before it samples anything.

    Args:
        prompts: what it is asked to continue.
        sampling: how.
        context: the longest sequence in tokens that can be sampled; None: not known here.
        whose: that is, for the message.
        hottest: the highest temperature.

    Raises:
        TypeError: something other than a `Prompt` is given.
        ValueError: a temperature that is not above 0, or above `hottest`.
        ModelError: a prompt is empty, or with `max_new_tokens` exceeds `context`.
    """
    if not 0 < sampling.temperature <= hottest:
        most = f" and at most {hottest}" if hottest < math.inf else ""
        raise ValueError(f"temperature must be above 0{most}, but got {sampling.temperature}; top_k=1 samples greedily")
    new = sampling.max_new_tokens
    for prompt in prompts:
        if not isinstance(prompt, Prompt):
            raise TypeError(f"an engine takes Prompt objects only, but got {type(prompt).__name__}")
        length = len(prompt.token_ids)
        if length == 0:
            raise ModelError(f"problem {prompt.problem_id!r}: the prompt has no tokens; check the prompt template.")
        if context is not None and length + new > context:
            raise ModelError(
                f"problem {prompt.problem_id!r}: {length} prompt tokens + {new} max_new_tokens = {length + new}, but "
                f"{whose} has a context of {context} tokens. Set max_new_tokens to at most {max(context - length, 0)}, "
                "or drop prompts this long."
            )
