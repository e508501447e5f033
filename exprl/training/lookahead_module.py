"""What a method needs whose rollouts may be sampled one step ahead (`rollout.lookahead`)."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from exprl.data.datamodule import ExpRLDataModule
from exprl.data.order import share_of
from exprl.errors import ConfigError, JudgeError, NonFiniteError
from exprl.runs.timeline import SAMPLER, TRAINER
from exprl.terminal.phases import Phases
from exprl.training import metrics
from exprl.training.collecting import Collector
from exprl.training.lookahead import (
    COLLECTING,
    WAITING,
    Batch,
    Idle,
    Lookahead,
    computing_here,
    decoded,
    encoded,
)
from exprl.training.policy_module import PolicyModule
from exprl.types import Problem, ScoredGroup

log = logging.getLogger(__name__)

LOOKAHEAD = "rollout.lookahead"


class LookaheadModule(PolicyModule):
    """A policy in training on rollouts of its own: of the policy that a step updates, or of the one before it."""

    def collect_by(self, collector: Collector) -> None:
        """To be called by the constructor: who samples and scores."""
        self.collector = collector
        self.computing_here = computing_here(collector.engine, collector.reward)
        """Whose work would be in an update's way."""
        self.ahead = Lookahead(collector, beside=not self.computing_here) if collector.engine.lookahead else None
        self.age: dict[str, float] = {}
        """What is logged of how old a step's rollouts are."""
        self.failed = False
        """Whether a rank's batch for the next step failed; the run ends as soon as this step can be saved."""
        self.saved_batches: list[bytes | None] = []
        """The next batch of each rank of the checkpoint that the run goes on from."""

    @abstractmethod
    def collecting(self, step: int, problems: Sequence[Problem]) -> Callable[[Collector], Batch]:
        """What makes this rank's batch of the step after `step` others; ranks exchange what they must before it."""

    @abstractmethod
    def check_batch(self, batch: Batch) -> None:
        """Raise `JudgeError` or `NonFiniteError` where a step could not learn from this batch of all ranks."""

    # ------------------------------------------------------------------ one step

    def batch_of_step(self, problems: Sequence[Problem]) -> Batch:
        """The step's rollouts with rewards: those sampled ahead, or else of the present policy; the next are begun.

        Made in this process they are sampled with whole models; elsewhere nobody needs those.
        """
        self.raise_failure()
        with self.whole_models() if self.computing_here else nullcontext():
            if self.ahead is None:
                return self.collect(problems)
            if self.ahead.ready is None:
                self.ahead.ready = self.collect(problems)
            self.look_ahead(self.ahead)
            return self.ahead.ready

    def collect(self, problems: Sequence[Problem]) -> Batch:
        """Rollouts of the present policy for this rank's problems of the step under way, with rewards."""
        return self.collecting(self.steps_done, problems)(self.collector)

    def look_ahead(self, ahead: Lookahead) -> None:
        """Have the next step's rollouts sampled by the present policy: now, or from now on in a thread."""
        following = self.steps_done + 1
        data = self.data_for(LOOKAHEAD)
        if following < data.max_steps:
            problems = data.step_problems(following)
            own = problems[share_of(len(problems), self.world.rank, self.world.size)]
            ahead.begin(self.collecting(following, own))

    def note_age(self, scored: Sequence[ScoredGroup]) -> None:
        """How many updates the step's rollouts are behind the policy that is about to be updated."""
        if self.ahead is not None:
            age = metrics.staleness(scored, self.steps_done)
            self.stale, self.age = age > 0, {"update/staleness": age}

    def rest_engine(self) -> None:
        """Not while it samples."""
        if self.ahead is None or not self.ahead.running:
            super().rest_engine()

    def finish_beside(self) -> bool:
        """See `PolicyModule`: the next step's batch."""
        if self.ahead is None:
            return True
        if self.ahead.beside:
            with self.phases.run(WAITING):
                self.ahead.wait(self.world.timeout)
            self.failed = any(self.world.gather(self.ahead.failed, f"the rollouts of step {self.steps_done + 2}"))
        self.ahead.advance()
        return not self.failed

    def step_logged(self) -> None:
        """Also end the run where the next batch has failed: this step can be saved now."""
        super().step_logged()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what made the next batch fail, on the other ranks `PeerError`."""
        if self.ahead is None or not self.failed:
            return
        self.world.barrier(f"the end of step {self.steps_done}")  # all have logged it
        self.ahead.raise_error()
        self.world.barrier(f"the rollouts of {self.step}")  # here it is heard that another rank has failed

    def timing(self, tokens: int) -> dict[str, float]:
        """Also how long trainer and sampler waited for each other; what was done beside the update counts as well."""
        beside = self.ahead.phases.take() if self.ahead is not None else {}
        timing = super().timing(tokens)
        here = {name: timing.pop(f"time/{name}_seconds", 0.0) for name in (*COLLECTING, WAITING)}
        made = {name: here[name] + beside.get(name, 0.0) for name in COLLECTING}
        idle = Idle.of(made, here, timing["time/step_seconds"])
        return {**{f"time/{name}_seconds": seconds for name, seconds in made.items()}, **timing, **idle.metrics}

    # ------------------------------------------------------------------ around the steps

    def data_for(self, option: str) -> ExpRLDataModule:
        """The run's problems by step; raises `ConfigError` naming the option that needs them."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ExpRLDataModule):
            raise ConfigError(
                f"{option}: needs to know the problems of any step, which a loader of another kind does not say. "
                "Give them by trainer.fit(module, datamodule=ExpRLDataModule(...))."
            )
        return data

    def setup(self, stage: str) -> None:
        """Also see that the next step's problems can be known."""
        super().setup(stage)
        if self.ahead is not None:
            self.data_for(LOOKAHEAD)

    def on_train_start(self) -> None:
        """Also go on with the batch that was sampled ahead of the checkpoint."""
        super().on_train_start()
        if self.ahead is None:
            return
        self.ahead.ready = self.batch_of_checkpoint()
        if self.computing_here and self.world.first:
            verb = "computes" if len(self.computing_here) == 1 else "compute"
            log.warning(
                "rollout.lookahead: %s %s in this process, so the next step's rollouts are made right before each "
                "update and not beside it: the same ones, and no time gained",
                " and ".join(self.computing_here),
                verb,
            )

    def batch_of_checkpoint(self) -> Batch | None:
        """The next step's batch that the checkpoint has; None, with a warning, where it has none to learn from.

        Raises:
            DataError: a problem of it is another one now.
        """
        data = self.data_for(LOOKAHEAD)
        if not 0 < self.steps_done < data.max_steps:
            return None
        parts = [part for part in self.saved_batches if part is not None]
        if len(parts) < len(self.saved_batches):
            self.warn_anew(
                "the checkpoint lacks rollouts of %s, which are sampled ahead: the run was to end before it, or they "
                "failed."
            )
            return None
        batch = decoded(parts, {problem.id: problem for problem in data.problems})
        try:
            self.check_batch(batch)
        except (JudgeError, NonFiniteError) as error:
            # the run would stop at them again, however often it is gone on with and whatever was mended since
            self.warn_anew("of the checkpoint's rollouts of %s nothing can be learned: %s", error)
            return None
        return batch[share_of(len(batch), self.world.rank, self.world.size)]

    def warn_anew(self, why: str, *details: object) -> None:
        """Say that the step under way has rollouts of the present policy, and why."""
        if self.world.first:
            log.warning(f"{why} They are sampled anew, by the policy as it is now", self.step, *details)

    @property
    def reward_state(self) -> Mapping[str, Any]:
        """What a checkpoint keeps of the reward."""
        return self.collector.reward.state_dict() if self.ahead is None else self.ahead.reward_state

    def rank_state(self) -> dict[str, Any]:
        """The next step's batch."""
        if self.ahead is None:
            return super().rank_state()
        ready = self.ahead.ready
        return {**super().rank_state(), "next_batch": None if ready is None else encoded(ready, self.steps_done + 1)}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Also keep the next batches of all ranks: this one may have another part of them now."""
        super().on_load_checkpoint(checkpoint)
        self.saved_batches = [own and own.get("next_batch") for own in checkpoint["exprl"]["ranks"]]

    def end_beside(self) -> None:
        """Give up a batch that is still being made."""
        if self.ahead is not None:
            self.ahead.end()


def rows_of(module: PolicyModule) -> dict[str, Phases]:
    """What goes on side by side in a run, by its row in the timeline."""
    ahead = module.ahead if isinstance(module, LookaheadModule) else None
    return {TRAINER: module.phases, **({SAMPLER: ahead.phases} if ahead is not None else {})}
