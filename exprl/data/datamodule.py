"""The training problems as Lightning reads them: exactly `prompts_per_step` a step, resumable at the next step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from lightning import LightningDataModule

from exprl.data.fingerprint import fingerprint, first_difference
from exprl.data.order import Part, StepOrder, check_parts, check_share, mixed_indices, share_of, shares
from exprl.data.replacing import replacements
from exprl.errors import ConfigError, DataError
from exprl.types import Problem


def check_step(problems: Sequence[Problem], prompts_per_step: int, parts: Sequence[Part] = ()) -> None:
    """Raise `ConfigError` where a step needs more problems than there are, or than there are of one of the `parts`."""
    if not 1 <= prompts_per_step <= len(problems):
        raise ConfigError(
            f"data.prompts_per_step: {prompts_per_step}, but there are {len(problems)} training problems, and no step "
            f"has a problem twice. Choose 1 to {len(problems)}, or add problems."
        )
    check_parts(parts, prompts_per_step)


class ExpRLDataModule(LightningDataModule):
    """Batches are `list[Problem]`, this rank's share of the step's problems.

    One Lightning epoch is the whole run of `max_steps` steps, however often it passes over the problems: give the
    Trainer `max_epochs=1, use_distributed_sampler=False`. Then the run's length does not depend on how many optimizer
    steps a step makes. The loader has a length, because Lightning fetches one batch ahead from one without, and resume
    would skip that batch.

    Args:
        problems: the training problems, ids unique.
        prompts_per_step: problems a step over all ranks; at least one a rank.
        max_steps: steps of the run.
        seed: of the order.
        parts: of the problems, in order, from which a step draws by weight (`ProblemSource.load_parts`); empty: one.

    Raises:
        ConfigError: a step needs more problems than there are, of a part or altogether.
        ValueError: the parts do not make up the problems.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        *,
        prompts_per_step: int,
        max_steps: int,
        seed: int = 0,
        parts: Sequence[Part] = (),
    ) -> None:
        super().__init__()
        if parts and sum(part.count for part in parts) != len(problems):
            raise ValueError(f"parts: they have {sum(p.count for p in parts)} problems, but there are {len(problems)}")
        check_step(problems, prompts_per_step, parts)
        self.parts = tuple(parts) or (Part(name="all", count=len(problems), weight=1.0),)
        self.problems = list(problems)
        self.prompts_per_step = prompts_per_step
        self.max_steps = max_steps
        self.seed = seed
        self._order = StepOrder(self.parts, prompts_per_step, seed)
        self._start = 0
        self._processed_before: int | None = None

    @property
    def steps_done(self) -> int:
        """Steps whose `training_step` has returned, those before a resume included."""
        if self._processed_before is None:
            return self._start
        return self._start + self._processed() - self._processed_before

    def step_problems(self, step: int) -> list[Problem]:
        """All problems of the step that follows `step` others, in the order of its places.

        A rank's are those of `share_of(prompts_per_step, rank, ranks)`. A pure function of the seed and the step: ask
        for any, at any time. What the loader gives does not depend on it.

        Raises:
            IndexError: `step` is below 0 or not one of the run's.
        """
        return [self.problems[index] for index in self._step(step)]

    def step_replacements(self, step: int, rounds: int) -> list[list[Problem]]:
        """For each place of a step the problems that may take it, one a round (`exprl.data.replacing`).

        A pure function of the seed and the step, as `step_problems`, and raises as that does.
        """
        found = replacements(self.parts, self._step(step), rounds=rounds, seed=self.seed, step=step)
        return [[self.problems[index] for index in own] for own in found]

    def train_dataloader(self) -> StepLoader:
        """This rank's loader, from the step after the last one done; raises `ConfigError` if it has no share."""
        ranks, rank = self._ranks()
        check_share(self.prompts_per_step, ranks)
        self._processed_before = self._processed()
        return StepLoader(
            self.problems,
            mixed_indices(self.parts, self.prompts_per_step, self.seed),
            start=self._start,
            max_steps=self.max_steps,
            rank=rank,
            ranks=ranks,
        )

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Problems have no tensors; Lightning's own transfer refuses frozen dataclasses."""
        del device, dataloader_idx
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {
            "step": self.steps_done,
            "seed": self.seed,
            "prompts_per_step": self.prompts_per_step,
            "problems": fingerprint(self.problems),
            "parts": self._shares(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the saved step.

        Raises:
            DataError: the problems are others than those of the checkpoint.
            ConfigError: `seed`, `prompts_per_step` or a weight is another, so the next step would be another.
        """
        difference = first_difference(state_dict["problems"], fingerprint(self.problems))
        if difference is not None:
            raise DataError(
                f"the training problems are not those of the checkpoint: {difference}. "
                "Resume with the same data, or start a new run."
            )
        state = {"parts": {}, **state_dict}  # those of older versions have one part
        for key, now in (("seed", self.seed), ("prompts_per_step", self.prompts_per_step), ("parts", self._shares())):
            if state[key] != now:
                raise ConfigError(f"{key}: the checkpoint was made with {state[key]}, but got {now}.")
        self._start = state_dict["step"]
        self._processed_before = None

    def _step(self, step: int) -> list[int]:
        if not 0 <= step < self.max_steps:
            raise IndexError(f"step: must lie in 0..{self.max_steps - 1}, but got {step}")
        return self._order[step]

    def _shares(self) -> dict[str, float]:
        """How much of a step is of each part by its name, where there are several."""
        named = {part.name: share for part, share in zip(self.parts, shares(self.parts), strict=True)}
        return named if len(named) > 1 else {}

    def _processed(self) -> int:
        # `processed` counts a batch as soon as training_step returns: before on_train_batch_end, where checkpoints are
        # written, and not when training_step raises. `completed` and the sampler's own position miss one or the other.
        if self.trainer is None:
            return 0
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]

    def _ranks(self) -> tuple[int, int]:
        # of the data-parallel group: with tensor parallelism it is smaller than the world
        group = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return (group["num_replicas"], group["rank"]) if group is not None else (1, 0)


class StepLoader:
    """One rank's contiguous share of each step's problems, from step `start` to `max_steps`.

    Nothing is loaded, so it is no `DataLoader`: Lightning asks those for workers, and they draw a seed of their own.
    Its length is `max_steps` even after a resume: Lightning counts the batches fetched before towards it.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        steps: Iterator[list[int]],
        *,
        start: int,
        max_steps: int,
        rank: int,
        ranks: int,
    ) -> None:
        self.problems = problems
        self.remaining = islice(steps, start, max_steps)
        self.max_steps = max_steps
        self.rank = rank
        self.ranks = ranks
        self.finished = False

    def __iter__(self) -> Iterator[list[Problem]]:
        if self.finished:  # an epoch without batches would make a Trainer without an epoch limit spin forever
            raise ConfigError(f"all {self.max_steps} steps are done, but the Trainer goes on: give it max_epochs=1.")
        for indices in self.remaining:
            yield [self.problems[index] for index in indices[share_of(len(indices), self.rank, self.ranks)]]
        self.finished = True

    def __len__(self) -> int:
        return self.max_steps

    def state_dict(self) -> dict[str, Any]:
        """Nothing of its own: the position is saved once, by the DataModule. By it Lightning knows that it resumes."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take over."""
