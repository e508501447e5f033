"""One step ahead (`rollout.lookahead`): the next step's batch is made before, or while, the policy is updated.

A batch is this rank's share of a step: its groups of rollouts with their rewards. The batch of step t + 1 is sampled
and judged by the policy as it is before update t, so it is one version old when it is learned from. Where engine and
judge compute elsewhere it is made in a thread beside the update; else right before it, with the same result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exprl.component import Stateful, title_of
from exprl.engines.base import Engine
from exprl.errors import EngineError
from exprl.rewards.base import Reward
from exprl.rollouts.format import decode_content, encode
from exprl.rollouts.stored import StoredGroup
from exprl.terminal.phases import Phases
from exprl.training.collecting import Collector
from exprl.training.exchange import Rewarded
from exprl.types import Problem
from exprl.waiting import Wait

Batch = list[Rewarded]

POLL = 0.1
"""Seconds between two looks at how long a batch that is waited for has been silent."""
ENDING = 5.0
"""Seconds at most that the end of a run waits for a thread that was told to stop."""


class CancelledError(Exception):
    """In the thread of a batch that nobody wants any more."""


def computing_here(engine: Engine, reward: Reward) -> list[str]:
    """Whose work would be in the update's way, by their names: the engine's, the reward's and its judges'."""
    engines = [] if engine.overlaps else [f"engine {title_of(engine)}"]
    return engines + [f"{part.registered_family} {title_of(part)}" for part in _parts(reward) if not part.overlaps]


def _parts(part: Stateful) -> list[Stateful]:
    return [part, *(inner for own in part.lasting().values() for inner in _parts(own))]


class Background:
    """A batch that is being made in a thread of its own, which takes part in no exchange of ranks.

    Attributes:
        batch: what came of it; None: nothing yet, or it failed.
        error: why it failed, or why it is not waited for any longer.
    """

    def __init__(self, make: Callable[[], Batch]) -> None:
        self.batch: Batch | None = None
        self.error: BaseException | None = None
        self._make = make
        self._cancelled = False
        self._beats = 0
        # a daemon: whatever it waits for must not keep a process that has failed
        self._thread = threading.Thread(target=self._run, name="exprl-next-step", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether its thread is at work."""
        return self._thread.is_alive()

    def beat(self) -> None:
        """A sign of life from the thread; raises `CancelledError` in it once nobody wants the batch any more."""
        self._beats += 1
        if self._cancelled:
            raise CancelledError

    def wait(self, limit: float) -> None:
        """Until it has ended, or has given no sign of life for `limit` seconds, which is an error of it."""
        wait, heard = Wait(limit), self._beats
        while self.running:
            self._thread.join(min(POLL, wait.pause))
            if heard != self._beats:
                wait, heard = Wait(limit), self._beats
            if self.running and wait.over():
                self.error = EngineError(
                    f"nothing came of the next step's rollouts and verdicts for {limit:g} s (trainer.timeout). Are "
                    "those who sample and judge them still there? Go on with --resume."
                )
                self._cancelled = True
                return

    def cancel(self, seconds: float) -> None:
        """Let the thread end with the next thing done, and wait for that, but not for longer."""
        self._cancelled = True
        if self.running:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self.batch = self._make()
        except BaseException as error:  # noqa: BLE001 - raised by who waits for the batch
            self.error = self.error or error


class Lookahead:
    """The batches of a run that samples one step ahead.

    Args:
        collector: makes batches in the trainer's own thread.
        beside: whether they can be made in another thread while the policy updates.
    """

    def __init__(self, collector: Collector, *, beside: bool) -> None:
        self.beside = beside
        self.ready: Batch | None = None
        """Of the step under way until it is finished, then of the next; None: there is none."""
        self.phases = Phases(self._beat, shown=bool, heard=self._beat, total=collector.phases.total)
        """What the other thread does."""
        self._collector = collector.timed_by(self.phases) if beside else collector
        self._next: Batch | None = None
        self._job: Background | None = None
        self._reward_state: Mapping[str, Any] = {}

    def begin(self, make: Callable[[Collector], Batch]) -> None:
        """Make the next batch; if it is made beside the update it is waited for by `wait`."""
        if not self.beside:
            self._next = make(self._collector)
            return
        self._reward_state = self._collector.reward.state_dict()
        self._job = Background(lambda: make(self._collector))
        self._job.start()

    @property
    def running(self) -> bool:
        """Whether a batch is being made beside the update."""
        return self._job is not None and self._job.running

    def wait(self, limit: float) -> None:
        """For the batch that `begin` began, if it did; see `Background.wait`."""
        if self._job is not None:
            self._job.wait(limit)
            self._next = self._job.batch

    @property
    def failed(self) -> bool:
        """Whether that batch never comes."""
        return self._job is not None and self._job.error is not None

    def raise_error(self) -> None:
        """Raise why."""
        if self._job is not None and self._job.error is not None:
            raise self._job.error

    def advance(self) -> None:
        """The step under way is finished: the next batch takes the place of its own."""
        self.ready, self._next = self._next, None
        if not self.failed:
            self._job = None

    @property
    def reward_state(self) -> Mapping[str, Any]:
        """What a checkpoint keeps of the reward; as it was before a batch that is still being made."""
        return self._reward_state if self.running else self._collector.reward.state_dict()

    def end(self) -> None:
        """Give up the batch that is still being made, if one is."""
        if self._job is not None:
            self._job.cancel(ENDING)

    def _beat(self, *_: object) -> None:
        if self._job is not None:
            self._job.beat()


# ------------------------------------------------------------------ in a checkpoint


def encoded(batch: Batch, step: int) -> bytes:
    """A batch for a checkpoint, without scaffolds: problems are known again by their ids."""
    return encode([StoredGroup.of_rewarded(group, rewards) for group, rewards in batch], step=step)


def decoded(parts: Sequence[bytes], problems: Mapping[str, Problem]) -> Batch:
    """The whole batch whose parts the ranks of a checkpoint left, however many those were.

    Raises:
        DataError: a problem of it is another one now, or a part is damaged.
    """
    stored = [group for content in parts for group in decode_content(content, "the checkpoint's next batch")[1]]
    return [(group.with_problem(problems[group.problem_id]), group.rewards or ()) for group in stored]


# ------------------------------------------------------------------ what is logged


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Seconds of a step in which one side had nothing to do.

    Attributes:
        trainer: waited for rollouts or verdicts.
        sampler: engine and judge waited for the trainer.
    """

    trainer: float
    sampler: float

    @classmethod
    def of(cls, made: Mapping[str, float], here: Mapping[str, float], whole: float) -> Idle:
        """From the seconds of each phase of making batches, of the phases in the trainer's thread, and of the step.

        >>> Idle.of({"sampling": 2.0, "judging": 1.0}, {"sampling": 2.0, "judging": 1.0}, whole=8.0)
        Idle(trainer=3.0, sampler=5.0)
        >>> Idle.of({"sampling": 4.0, "judging": 1.0}, {"waiting": 1.5}, whole=6.0)
        Idle(trainer=1.5, sampler=1.0)
        """
        return cls(trainer=sum(here.values()), sampler=max(whole - sum(made.values()), 0.0))

    @property
    def metrics(self) -> dict[str, float]:
        """By the names they are logged under."""
        return {"time/idle_trainer_seconds": self.trainer, "time/idle_sampler_seconds": self.sampler}


COLLECTING = ("sampling", "judging")
"""The phases of making a batch."""
WAITING = "waiting"
"""The phase in which an update is done and the next batch is not."""
