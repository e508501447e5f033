"""What every training method shares: the policy, its optimizer step, its ranks, its checkpoints."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from lightning import Callback, LightningModule
from torch import Tensor

from exprl.checks.compilers import compile_errors
from exprl.checks.contracts import not_the_end
from exprl.checks.finite import check_finite
from exprl.checks.memory import memory_for
from exprl.engines.base import Engine
from exprl.engines.canary import allowed_gap
from exprl.experiment import OptimizerConfig, UpdateConfig
from exprl.models.base import LanguageModel
from exprl.runs.timeline import SYNCING
from exprl.terminal.phases import Phases
from exprl.training.checkpointing import reopen
from exprl.training.gap import check_gap
from exprl.training.held import HeldModels
from exprl.training.metrics import update_metrics
from exprl.training.no_update import NoUpdate
from exprl.training.optimizer import build_optimizer
from exprl.training.parallel import clip_gradients, sum_gradients, weights_norm
from exprl.training.randomness import random_state, restore_random_state
from exprl.training.records import existing
from exprl.training.reporting import log_step
from exprl.training.start_check import Agreement, check_agreement
from exprl.training.trainer_checks import check_trainer
from exprl.training.update import LESS_MEMORY, PolicyUpdate, Update
from exprl.training.world import World
from exprl.types import Problem, ScoredGroup

Shown = tuple[tuple[str, str, str], ...]
"""Metrics on the console: name, label, format."""


class PolicyModule(LightningModule):
    """A policy in training. A method says in `training_step` what one step is, and in `policy_update` what its loss is.

    Args:
        policy: the model to train.
        engine: samples with the policy's weights, which it is given after each step.
        optimizer: AdamW and its schedule.
        update: how what a step learns from becomes optimizer updates.
        initial_policy: the frozen one. It is outside the module tree, so neither moved into checkpoints nor trained.
        seed: of the run.
        world: the ranks; None: those of the Trainer.
    """

    shown: ClassVar[Shown] = (("update/loss", "loss", ".3f"), ("update/entropy", "entropy", ".3f"))
    """What the console shows of a step."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "training_step" in vars(cls):
            cls.training_step = not_the_end(vars(cls)["training_step"])  # type: ignore[method-assign]

    def __init__(
        self,
        policy: LanguageModel,
        engine: Engine,
        *,
        optimizer: OptimizerConfig,
        update: UpdateConfig,
        initial_policy: LanguageModel | None = None,
        seed: int = 0,
        world: World | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy.model
        self.language_model = policy
        self.engine = engine
        self.initial_policy = initial_policy
        self.held = HeldModels.of(policy.model, initial_policy, offload=update.offload_initial_policy)
        self.optimizer_config = optimizer
        self.update = update
        self.seed = seed
        self.given_world = world
        self.world = world or World()
        self.phases = Phases(lambda name: self.world.enter(f"{name} of {self.step}"), shown=lambda: self.world.first)
        self.steps_done = 0
        self.step_began = time.perf_counter()
        self.stale = False
        """Whether the step learns from rollouts of an earlier policy than the one that it updates."""
        self.updating = False
        self.recording = False
        self.whole_steps = True
        self.logs_metrics = True
        """Whether Lightning gives the loggers what is reported; not where a run writes to them itself."""
        self.last_scored: list[ScoredGroup] = []
        self.last_metrics: dict[str, float] = {}
        self.last_no_update: NoUpdate | None = None
        self.agreement: Agreement | None = None

    # ------------------------------------------------------------------ what a method says

    @abstractmethod
    def training_step(self, problems: list[Problem], batch_idx: int) -> None:
        """One step on this rank's problems; ends with `report`.

        It does so on every rank, since any of them may have to save what rank 0 writes. A step that makes no update
        says why in `last_no_update`.
        """

    @abstractmethod
    def policy_update(self) -> PolicyUpdate:
        """What computes gradients, on this module's device."""

    @property
    def needs_initial_logprobs(self) -> bool:
        """Whether the update takes log-probs under the frozen initial policy."""
        return False

    def policy_changed(self) -> None:
        """Called after each step's update, when the engine has the new weights."""

    def texts(self) -> dict[str, str]:
        """The texts that shape the run beside its config, by what they are."""
        return {"the policy's chat template": str(self.language_model.tokenizer.chat_template)}

    def rank_state(self) -> dict[str, Any]:
        """What a checkpoint keeps for each rank, beside its random states."""
        return {}

    def load_rank_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `rank_state`."""

    def shared_state(self) -> dict[str, Any]:
        """What a checkpoint keeps once, the same on all ranks, beside the number of steps."""
        return {}

    def load_shared_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `shared_state`."""

    def close(self) -> None:
        """Free what the run holds; called when it ends, also by an error."""
        self.engine.close()

    @property
    def step(self) -> str:
        """The step under way, for messages."""
        return f"step {self.steps_done + 1}"

    # ------------------------------------------------------------------ around a step's update

    def whole_models(self) -> AbstractContextManager[None]:
        """Inside, this rank holds all weights of the policy and the initial policy, on its device."""
        return self.held.whole(self.device)

    @contextmanager
    def changing_policy(self) -> Iterator[None]:
        """Around a step's update: the engine rests meanwhile and has the new weights afterwards.

        From here until the step has been logged (`step_logged`) a signal waits. Once weights begin to change they must
        not be saved (`whole_steps`), until data, metrics and weights are of the same step again (`step_finished`).
        """
        self.updating = True
        self.rest_engine()
        yield
        self.whole_steps = False  # also where nothing was updated: the step counts now, and has no records yet
        ready = self.finish_beside()
        self.steps_done += 1
        if ready:
            with self.phases.mark(SYNCING):
                self.engine.sync(self.steps_done)
                self.policy_changed()

    def rest_engine(self) -> None:
        """Let the engine free what memory it can, while it samples nothing."""
        self.engine.sleep()

    def finish_beside(self) -> bool:
        """Wait for what is done beside the update; False, on all ranks, where it failed: then `step_logged` raises."""
        return True

    def step_finished(self) -> None:
        """To be called when a step can be saved, with its records, whether or not they are written yet."""
        self.whole_steps = True

    def step_logged(self) -> None:
        """To be called when they are written."""
        self.updating = False

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Around writing what belongs together outside of a step, such as an evaluation: a signal waits."""
        self.recording = True
        try:
            yield
        finally:
            self.recording = False

    # ------------------------------------------------------------------ the update

    def update_policy(self, computing: PolicyUpdate, updates: Sequence[Update]) -> dict[str, float]:
        """Make the optimizer updates of a step, `update.epochs` times; returns their metrics."""
        totals: defaultdict[str, float] = defaultdict(float)
        with (
            self.world.collective(f"the update of {self.step}"),
            self.phases.run("updating", len(updates) * self.update.epochs, unit="update") as on_progress,
            memory_for("updating", LESS_MEMORY),
            compile_errors(),
        ):
            initial = self.initial_logprobs(computing, updates)
            old = self.old_logprobs(computing, updates)
            for _ in range(self.update.epochs):
                for update, before, frozen in zip(updates, old, initial, strict=True):
                    for name, value in self.update_once(computing, update, before, frozen).items():
                        totals[name] += value
                    on_progress(1)
        return {**update_metrics(totals, computing.statistics), "update/count": totals.get("updates", 0.0)}

    def initial_logprobs(self, computing: PolicyUpdate, updates: Sequence[Update]) -> list[list[Tensor] | None]:
        """Log-probs under the frozen initial policy, where they are needed."""
        initial = self.initial_policy
        if initial is None or not self.needs_initial_logprobs:
            return [None for _ in updates]
        with self.held.frozen_on(self.device):
            return [computing.frozen_logprobs(initial, update) for update in updates]

    def old_logprobs(self, computing: PolicyUpdate, updates: Sequence[Update]) -> list[list[Tensor] | None]:
        """Log-probs before the step's first update; None where the policy still is that policy when it updates."""
        if len(updates) * self.update.epochs <= 1:
            return [None for _ in updates]
        return [computing.frozen_logprobs(self.language_model, update) for update in updates]

    def update_once(
        self, computing: PolicyUpdate, update: Update, old: list[Tensor] | None, initial: list[Tensor] | None
    ) -> dict[str, float]:
        """One optimizer update; sums of the per-token statistics over all ranks.

        Raises:
            NonFiniteError: on every rank alike; the weights are as they were unless it is they that are not finite.
            EngineError: the update's tokens were sampled from another policy than this; the weights are as they were.
        """
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert not isinstance(optimizer, list)
        assert scheduler is not None
        assert not isinstance(scheduler, list)
        optimizer.zero_grad()
        sums = self.world.sum(computing.accumulate(update, self.manual_backward, old=old, initial=initial))
        check_finite(sums, self.step)
        self.check_gap(sums, update)
        sum_gradients(self.policy, self.world)
        norm = clip_gradients(self.policy, self.optimizer_config.max_grad_norm)
        check_finite({"grad_norm": norm}, self.step)
        self.whole_steps = False
        optimizer.step()
        optimizer.zero_grad()  # now: the next step's rollouts are sampled first, and want the memory
        self.check_weights(f"{self.step}, after an update")
        scheduler.step()
        rate = float(scheduler.get_last_lr()[0])
        return {**sums, "tokens": float(update.tokens), "updates": 1.0, "grad_norm": norm, "lr": rate}

    def check_gap(self, sums: Mapping[str, float], update: Update) -> None:
        """Raise `EngineError` on every rank if the engine's log-probs of the update's tokens are not the trainer's."""
        if "sampler_gap" in sums:
            gap = sums["sampler_gap"] / update.tokens
            check_gap(gap, self.allowed_gap, tokens=update.tokens, step=self.step, stale=self.stale)

    @property
    def allowed_gap(self) -> float:
        """Mean absolute difference of log-probs that engine and trainer may have."""
        by_precision = allowed_gap(self.language_model, self.engine.precision, temperature=self.temperature)
        return self.update.gap_tolerance or by_precision

    @property
    def temperature(self) -> float:
        """Of the sampling that log-probs are taken at."""
        return 1.0

    def check_start(self) -> Agreement:
        """See that engine, trainer and the model's own forward pass give sampled tokens the same log-probs.

        Raises:
            ModelError: they do not, with the figures.
        """
        computing = self.policy_update()
        with self.trainer.precision_plugin.forward_context(), self.whole_models():
            return check_agreement(
                self.language_model,
                self.engine,
                packed=computing.packed,
                temperature=computing.temperature,
                backend=self.update.kernels,
                allowed=self.allowed_gap,
                frozen=self.initial_policy,
            )

    def check_weights(self, where: str) -> None:
        """Raise `NonFiniteError` on every rank if a weight of any rank is not finite; all ranks together."""
        check_finite(self.world.sum({"weights": weights_norm(self.policy)}), where)

    # ------------------------------------------------------------------ what is logged

    def report(self, metrics: Mapping[str, float], scored: Sequence[ScoredGroup] = ()) -> None:
        """Say what a step came to, on every rank: its metrics, and its rollouts, others' without texts, if it has any.

        Callbacks, progress bars and loggers of the Trainer get the metrics, under the run's own step number. One
        without a value at this step is NaN, or missing.
        """
        self.last_metrics, self.last_scored = dict(metrics), list(scored)
        current = existing({**self.last_metrics, "step": float(self.steps_done)})
        log_step(self, current, shown=[name for name, _, _ in self.shown], loggers=self.logs_metrics)

    def timing(self, tokens: int) -> dict[str, float]:
        """Seconds of each phase on this rank and of the whole step, and how many of its `tokens` it did a second."""
        seconds = self.phases.take()
        whole = time.perf_counter() - self.step_began
        rates = {"time/tokens_per_second": tokens / whole, "time/step_seconds": whole}
        return {**{f"time/{name}_seconds": value for name, value in seconds.items()}, **rates}

    # ------------------------------------------------------------------ Lightning

    def configure_callbacks(self) -> list[Callback]:
        """None; but the first hook of all, where a Trainer that cannot train a policy is refused (`ConfigError`)."""
        check_trainer(self.trainer)
        return []

    def setup(self, stage: str) -> None:
        """Take ranks and precision of a Trainer of one's own."""
        if self.given_world is None:
            self.world = World()
        if str(self.trainer.precision) == "bf16-mixed":
            self.language_model = replace(self.language_model, compute_dtype=torch.bfloat16)

    def configure_model(self) -> None:
        """Shard policy and initial policy where the strategy shards."""
        self.held.shard(self.trainer.strategy, str(self.trainer.precision))

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up."""
        optimizer, schedule = build_optimizer(self.policy, self.optimizer_config)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Give the engine the weights, those of the checkpoint if the run goes on from one, and compare the two."""
        self.held.awaken(self.device)
        self.engine.sync(self.steps_done)
        self.agreement = self.check_start()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """A step begins, after what callbacks do before one."""
        del batch, batch_idx
        self.step_began = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What Lightning does not keep: steps, the method's own state, and each rank's random states."""
        own = {"rng": random_state(), **self.rank_state()}
        checkpoint["exprl"] = {
            "steps_done": self.steps_done,
            **self.shared_state(),
            "ranks": self.world.by_rank(self.world.gather(own, f"the checkpoint of step {self.steps_done}")),
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """The inverse of `on_save_checkpoint`; a rank that was not there starts with fresh random states."""
        state = checkpoint["exprl"]
        self.steps_done = state["steps_done"]
        if self.steps_done < getattr(getattr(self.trainer, "datamodule", None), "max_steps", 0):
            reopen(checkpoint["loops"]["fit_loop"])
        self.load_shared_state(state)
        own = dict(enumerate(state["ranks"])).get(self.world.rank)
        if own is not None:
            restore_random_state(own["rng"])
            self.load_rank_state(own)
