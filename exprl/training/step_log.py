"""What a run writes and prints of each step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from lightning import Callback, LightningModule, Trainer

from exprl.experiment import TrainerConfig
from exprl.files.disk import append_line
from exprl.files.lines import count_lines, cut_after
from exprl.rollouts.format import encode
from exprl.rollouts.showing import print_sample, samples
from exprl.rollouts.store import RolloutStore, file_name
from exprl.rollouts.stored import StoredGroup
from exprl.runs.directory import RunDirectory
from exprl.terminal.console import Console
from exprl.terminal.wording import counted
from exprl.training.evaluation_log import STEP, kind_of
from exprl.training.exchange import own_groups
from exprl.training.loggers import log_to, replay
from exprl.training.no_update import IN_A_ROW, NoUpdate
from exprl.training.policy_module import PolicyModule, Shown
from exprl.training.records import StepRecords, existing

log = logging.getLogger(__name__)

METRICS, ROLLOUTS = "metrics.jsonl", "rollouts"
OWED = "owed"
"""In a checkpoint: the records of its step that may not have been written."""
WITHOUT_UPDATE = "without_update"
"""And of how many steps in a row, up to its own, made no update."""


class StepLog(Callback):
    """Metrics to `metrics.jsonl` and TensorBoard, rollouts to `rollouts/`, one line and a rollout to the console.

    Every rank writes the rollouts that it sampled, so none needs those of the others; the first writes the rest.
    """

    def __init__(self, directory: RunDirectory, console: Console, *, options: TrainerConfig) -> None:
        self.directory = directory
        self.store = RolloutStore(directory.rollouts)
        self.console = console
        self.options = options
        self.told = False
        self.written = dict.fromkeys((METRICS, ROLLOUTS), 0)
        """Steps that have metrics and rollouts so far, all ranks together; known on every rank."""
        self.expected: Mapping[str, int] = {}
        """Of those, what was there when the checkpoint was written that the run goes on from."""
        self.without_update = 0
        """Steps one after the other that made no update, the last one among them."""
        self.owed: StepRecords | None = None
        """Of the step just finished, until all of it is known to be written."""

    def state_dict(self) -> dict[str, Any]:
        """A checkpoint says how many steps have records, so that lost ones are noticed, and holds what is owed."""
        return {**self.written, OWED: self.owed and asdict(self.owed), WITHOUT_UPDATE: self.without_update}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.expected, owed = dict(state_dict), state_dict.get(OWED)
        self.owed = owed and StepRecords.from_state(owed)
        self.without_update = state_dict.get(WITHOUT_UPDATE, 0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The loggers get a step from its records, so that a resumed run has each once."""
        assert isinstance(pl_module, PolicyModule)
        pl_module.logs_metrics = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the files back to the checkpoint, which has been read by now: what a killed run wrote past it goes.

        A step whose metrics may be missing in part is cut as well, and written anew from the checkpoint.
        """
        assert isinstance(pl_module, PolicyModule)
        if pl_module.world.first:
            self.pass_over_written()
            done = pl_module.steps_done
            owed = self.owed if self.owed is not None and self.owed.metrics is not None else None
            kept = self.cut_rollouts(done)
            self.written = {METRICS: self.cut(done - (owed is not None)), ROLLOUTS: kept}
            replay(trainer.loggers, self.directory.metrics)
            if owed is not None:
                self.write(trainer, pl_module, owed)
                self.written[METRICS] += 1
        self.owed = None
        # Every rank counts: the one that writes may be lost, and another writes the checkpoint then.
        self.written = pl_module.world.gather(self.written, "counting the records of the run")[0]

    def pass_over_written(self) -> None:
        """Owe no metrics of a step whose writer was lost after it had written them."""
        if self.owed is None or self.owed.sure:
            return
        if count_lines(self.directory.metrics, self.owed.step, kind=kind_of)[STEP]:
            self.owed = replace(self.owed, metrics=None)
            self.expected = {**self.expected, METRICS: self.expected[METRICS] + 1}

    def cut(self, step: int) -> int:
        """Cut the metrics back to `step`; returns their lines, with a warning if they are not as many as there were.

        Lines of evaluations are not counted: one that is missing is made when the run comes by it again.
        """
        path = self.directory.metrics
        cut = cut_after(path, step, kind=kind_of)
        kept = cut.kept.get(STEP, 0)
        expected = self.expected.get(METRICS, kept)
        kept_aside = f"the file as it was is kept as {path.name}.damaged"
        if cut.doubled:
            log.warning("%s had %d lines of steps that have one already; %s", path, cut.doubled, kept_aside)
        if kept > expected:
            log.warning(
                "%s has %d lines up to step %d, but %d were written: some are doubled or from elsewhere",
                path,
                kept,
                step,
                expected,
            )
        elif cut.damaged or kept < expected:
            log.warning(
                "%s has %d readable lines up to step %d, but should have %d; the rest is lost%s",
                path,
                kept,
                step,
                max(expected, kept + cut.damaged),
                f", {kept_aside}" if cut.damaged else "",
            )
        return kept

    def cut_rollouts(self, step: int) -> int:
        """Forget the rollouts after `step` and write what is owed; returns how many steps have theirs.

        Warns where they are fewer than there were: a rank that was lost may not have written its own.
        """
        self.store.cut_after(step)
        for name, content in (self.owed.files if self.owed is not None else {}).items():
            self.store.put(name, content)
        kept = len(self.store)
        expected = self.expected.get(ROLLOUTS, 0) + (self.owed is not None and self.keeps(self.owed.step))
        if kept < expected and self.options.keep_rollouts is None:
            log.warning(
                "%s has the rollouts of %d steps up to step %d, but should have those of %d; the rest is lost",
                self.store.folder,
                kept,
                step,
                expected,
            )
        return kept

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The start check's figures; the one epoch is the whole run."""
        assert isinstance(pl_module, PolicyModule)
        if pl_module.world.first and pl_module.agreement is not None:
            self.console.print(pl_module.agreement.line, highlight=False, soft_wrap=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After each step: from here it can be saved, since what is not written of it goes into the checkpoint.

        A signal waits until all is written. Whatever else stops the writing, a full disk or an impatient second signal,
        the step is resumed with all of its records. The ranks that do not write metrics owe them until the next step,
        by when they have met the one that does: should it be lost, they save the step with these.
        """
        assert isinstance(pl_module, PolicyModule)
        self.settle()
        step, world = pl_module.steps_done, pl_module.world
        own = [StoredGroup.of(scored) for scored in own_groups(pl_module.last_scored)]
        kept = bool(own) and self.keeps(step)
        self.owed = StepRecords(
            step=step,
            metrics=existing(pl_module.last_metrics),
            files={file_name(step, world.rank, world.size): encode(own, step=step)} if kept else {},
            shown=samples(own, step, self.options.print_samples),
            no_update=pl_module.last_no_update,
        )
        pl_module.step_finished()
        self.pay(trainer, pl_module)
        pl_module.step_logged()

    def keeps(self, step: int) -> bool:
        """Whether the rollouts of this step are kept."""
        every = self.options.rollouts_every
        return every > 0 and step % every == 0

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The ranks put together what they could not write of a step, and its metrics where the writer was lost."""
        assert isinstance(pl_module, PolicyModule)
        world, owed = pl_module.world, self.owed
        shares = world.gather(owed and owed.files, "the records that are owed")
        files = {name: content for share in shares if share for name, content in share.items()}
        writer_here = 0 in world.members
        lead = world.gather(owed is not None and owed.metrics is not None, "the metrics that are owed")[0]
        if owed is None or not (files or lead):
            saved = None
        else:
            saved = asdict(replace(owed, files=files, metrics=owed.metrics if lead else None, sure=writer_here))
        checkpoint["callbacks"][self.state_key][OWED] = saved

    def pay(self, trainer: Trainer, module: PolicyModule) -> None:
        """Write what is owed and this rank writes, if anything is."""
        if self.owed is None:
            return
        self.directory.require_lock()
        for name, content in self.owed.files.items():
            self.store.put(name, content)
            self.tell(content)
            self.owed = self.owed.without_file(name)
        if module.world.first:
            if self.options.keep_rollouts is not None:
                self.store.keep(self.options.keep_rollouts)
            self.write(trainer, module, self.owed)
            self.settle()

    def settle(self) -> None:
        """Count what was owed as written."""
        if self.owed is not None:
            self.written[METRICS] += self.owed.metrics is not None
            self.written[ROLLOUTS] += self.keeps(self.owed.step)
            self.owed = None

    def write(self, trainer: Trainer, module: PolicyModule, owed: StepRecords) -> None:
        """What a step that owes its metrics leaves in their file, with the loggers and on the console."""
        assert owed.metrics is not None
        append_line(self.directory.metrics, {"step": owed.step, **owed.metrics})
        log_to(trainer.loggers, owed.metrics, owed.step)
        for record in owed.shown:
            print_sample(self.console, record)
        self.console.say(self.line(owed.step, owed.metrics, module.shown, owed.no_update))
        self.notice(owed.no_update)

    def tell(self, content: bytes) -> None:
        """Say once where rollouts lie and what a step's take."""
        if not self.told:
            self.told = True
            latest = self.options.keep_rollouts
            which = "all steps" if latest is None else f"the latest {counted(latest, 'step')}"
            self.console.say(
                f"rollouts {self.store.folder}: {len(content) / 1e6:.2g} MB a step and rank; those of {which} are kept"
            )

    def line(self, step: int, metrics: Mapping[str, float], shown: Shown, no_update: NoUpdate | None) -> str:
        """The step in one line, without the metrics it does not have, and why it made no update where it made none."""
        last = self.options.max_steps
        start = f"step {step:>{len(str(last))}}/{last}"
        parts = [f"{label} {metrics[name]:z{form}}" for name, label, form in shown if name in metrics]
        reason = [f"no update: {no_update.reason}"] if no_update is not None else []
        return "  ".join([start, *parts, *reason, f"{metrics['time/step_seconds']:.1f} s"])

    def notice(self, no_update: NoUpdate | None) -> None:
        """Warn, once for each stretch, when several steps one after the other made no update."""
        self.without_update = 0 if no_update is None else self.without_update + 1
        if no_update is not None and self.without_update == IN_A_ROW:
            log.warning(
                "%d steps in a row made no update, so nothing was learned. What may help: %s",
                IN_A_ROW,
                no_update.advice,
            )
