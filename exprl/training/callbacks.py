"""What a run writes and prints after each step."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch.distributed.checkpoint.api import CheckpointException

from exprl.errors import CheckpointError, ExprlError, PathError
from exprl.files.disk import append_line
from exprl.files.lines import count_lines, cut_after
from exprl.models.sharding import is_sharded
from exprl.runs.directory import RunDirectory
from exprl.runs.leftovers import WRITING, remove, set_aside
from exprl.runs.parts import cause_of
from exprl.terminal.console import Console
from exprl.training.aftermath import assemble
from exprl.training.checkpointing import write_digests_together
from exprl.training.evaluation_log import STEP, kind_of
from exprl.training.exchange import own_groups
from exprl.training.interruption import Interruption
from exprl.training.loggers import log_to, replay
from exprl.training.no_update import IN_A_ROW, NoUpdate
from exprl.training.policy_module import PolicyModule, Shown
from exprl.training.records import StepRecords, existing
from exprl.training.room import size_of
from exprl.training.samples import print_sample, sample_records

log = logging.getLogger(__name__)

OWED = "owed"
"""In a checkpoint: the records of its step that may not have been written."""
WITHOUT_UPDATE = "without_update"
"""And of how many steps in a row, up to its own, made no update."""


class StepLog(Callback):
    """Metrics to `metrics.jsonl` and TensorBoard, rollouts to `samples.jsonl`, one line and a sample to the console."""

    def __init__(self, directory: RunDirectory, console: Console, *, max_steps: int, print_samples: int) -> None:
        self.directory = directory
        self.console = console
        self.max_steps = max_steps
        self.print_samples = print_samples
        self.files = (directory.metrics, directory.samples)
        self.lines = dict.fromkeys((path.name for path in self.files), 0)
        """Written so far by the rank that writes, by file; known on every rank."""
        self.expected: Mapping[str, int] = {}
        """Of those, what was there when the checkpoint was written that the run goes on from."""
        self.without_update = 0
        """Steps one after the other that made no update, the last one among them."""
        self.owed: StepRecords | None = None
        """Of the step just finished, until all of it is known to be written."""

    def state_dict(self) -> dict[str, Any]:
        """A checkpoint says how many lines belong to it, so that lost ones are noticed, and holds what is owed."""
        return {**self.lines, OWED: self.owed and asdict(self.owed), WITHOUT_UPDATE: self.without_update}

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

        A step of which a part may be missing is cut as well, and written anew from the checkpoint.
        """
        assert isinstance(pl_module, PolicyModule)
        if pl_module.world.first:
            self.pass_over_written()
            whole = pl_module.steps_done - (self.owed is not None)
            self.lines = {path.name: self.cut(path, whole) for path in self.files}
            replay(trainer.loggers, self.directory.metrics)
            self.pay(trainer, pl_module)
        self.owed = None
        # Every rank counts: the one that writes may be lost, and another writes the checkpoint then.
        self.lines = pl_module.world.gather(self.lines, "counting the lines of the run")[0]

    def pass_over_written(self) -> None:
        """Owe nothing of a step whose writer was lost, with its own samples, after all lines were written."""
        if self.owed is None or self.owed.complete:
            return
        found = [count_lines(path, self.owed.step, kind=kind_of)[STEP] for path in self.files]
        if found == [1, self.owed.count]:
            own = {path.name: self.expected[path.name] + count for path, count in zip(self.files, found, strict=True)}
            self.expected, self.owed = {**self.expected, **own}, None
        else:
            log.warning(
                "of step %d the samples of %d rollouts are lost, with the rank that was to write them",
                self.owed.step,
                self.owed.count - len(self.owed.samples),
            )

    def cut(self, path: Path, step: int) -> int:
        """Cut one file back to `step`; returns its lines, with a warning if they are not as many as there were.

        Lines of evaluations are not counted: one that is missing is made when the run comes by it again.
        """
        cut = cut_after(path, step, kind=kind_of, once=path == self.directory.metrics)
        kept = cut.kept.get(STEP, 0)
        expected = self.expected.get(path.name, kept)
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
        the step is resumed with all of its records. The ranks that do not write owe their own samples of a step until
        the next one, by when they have met the one that does: should it be lost, they save the step with these.
        """
        assert isinstance(pl_module, PolicyModule)
        self.settle()
        step, scored = pl_module.steps_done, pl_module.last_scored
        self.owed = StepRecords(
            step=step,
            metrics=existing(pl_module.last_metrics),
            samples=[record for own in own_groups(scored) for record in sample_records(own, step)],
            count=sum(len(s.group.rollouts) for s in scored),
            no_update=pl_module.last_no_update,
        )
        pl_module.step_finished()
        parts = pl_module.world.collect(self.owed.samples, f"the records of step {step}")
        if parts is not None:
            self.owed = replace(self.owed, samples=[record for part in parts for record in part])
            self.pay(trainer, pl_module)
        pl_module.step_logged()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Where the rank that writes was lost, the others put together what they have of the step; all ranks here."""
        assert isinstance(pl_module, PolicyModule)
        world, owed = pl_module.world, self.owed
        if world.gather(owed is None or owed.complete, "saving what is owed")[0]:
            return
        shares = world.gather(owed.samples if owed is not None else [], "the samples that are owed")
        if owed is not None:
            joined = replace(owed, samples=[record for share in shares for record in share])
            checkpoint["callbacks"][self.state_key][OWED] = asdict(joined)

    def pay(self, trainer: Trainer, module: PolicyModule) -> None:
        """Write what is owed, if anything is."""
        if self.owed is not None:
            self.write(trainer, module, self.owed)
            self.owed = replace(self.owed, count=len(self.owed.samples))
        self.settle()

    def settle(self) -> None:
        """Count what was owed as written."""
        if self.owed is not None:
            self.lines[self.directory.metrics.name] += 1
            self.lines[self.directory.samples.name] += self.owed.count
            self.owed = None

    def write(self, trainer: Trainer, module: PolicyModule, records: StepRecords) -> None:
        """The lines of a step."""
        self.directory.require_lock()
        append_line(self.directory.metrics, {"step": records.step, **records.metrics})
        for record in records.samples:
            append_line(self.directory.samples, record)
        log_to(trainer.loggers, records.metrics, records.step)
        for record in records.samples[: self.print_samples]:
            print_sample(self.console, record)
        self.console.say(self.line(records.step, records.metrics, module.shown, records.no_update))
        self.notice(records.no_update)

    def line(self, step: int, metrics: Mapping[str, float], shown: Shown, no_update: NoUpdate | None) -> str:
        """The step in one line, without the metrics it does not have, and why it made no update where it made none."""
        start = f"step {step:>{len(str(self.max_steps))}}/{self.max_steps}"
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


class Checkpoints(Callback):
    """Atomic checkpoints with digests, every so many steps and after the last, the latest `keep` of them kept.

    Args:
        directory: of the run.
        console: is told what the first one takes.
        every: steps between two; 0: after the last step alone.
        last: the number of steps of the run.
        keep: how many stay.
        damaged: checkpoints that were found damaged; they are moved aside once the run goes on from one before.
    """

    def __init__(
        self,
        directory: RunDirectory,
        console: Console,
        *,
        every: int,
        last: int,
        keep: int,
        damaged: Sequence[Path] = (),
    ) -> None:
        self.directory = directory
        self.console = console
        self.told = False
        self.every = every
        self.last = last
        self.keep = keep
        self.damaged = damaged
        self.stopped = False
        """Whether a callback has ended the run before its last step."""

    def state_dict(self) -> dict[str, Any]:
        """A run that was ended early stays ended."""
        return {"stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.stopped = state_dict["stopped"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning keeps not that a callback has ended the run, and would go on."""
        if checkpoint["callbacks"].get(self.state_key, {}).get("stopped"):
            checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The checkpoint has been read by now, so the damaged ones after it will be written anew."""
        assert isinstance(pl_module, PolicyModule)
        if pl_module.world.first:
            for checkpoint in self.damaged:
                set_aside(checkpoint)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After every `every` steps, the last one, and one after which a callback ends the run.

        The last one here as well, and not when training has ended: from then on Lightning counts the one epoch of a run
        as done, and a run that goes on from it with more steps would train nothing.
        """
        assert isinstance(pl_module, PolicyModule)
        done = pl_module.steps_done
        self.stopped = trainer.should_stop and done < self.last
        if self.stopped or done == self.last or (self.every and done % self.every == 0):
            self.save(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the finished steps of an interrupted or failed run, if its weights are still those of the last one."""
        assert isinstance(pl_module, PolicyModule)
        world = pl_module.world
        world.fail(exception)  # the others come here too once they know
        held = pl_module.steps_done if pl_module.whole_steps else 0
        try:
            refused = isinstance(exception, CheckpointError)
            if assemble(world, -1 if refused else held, everyone=is_sharded(pl_module.policy)):
                self.save(trainer, pl_module)
        except (ExprlError, CheckpointException, RuntimeError, ConnectionError) as error:
            log.error("no emergency checkpoint: %s", error)

    def save(self, trainer: Trainer, module: PolicyModule) -> None:
        """Write beside the target and rename, then drop the oldest; all ranks together.

        Raises:
            CheckpointError: it cannot be written; the checkpoints before it are untouched.
            NonFiniteError: a weight is not finite; they are untouched, too.
        """
        target = self.directory.checkpoint(module.steps_done)
        if target.exists():
            return
        module.world.exchanging = True
        try:
            self.write(trainer, module, target)
        finally:
            module.world.exchanging = False

    def write(self, trainer: Trainer, module: PolicyModule, target: Path) -> None:
        """See `save`."""
        unfinished = target.with_suffix(WRITING)
        if module.world.first:
            self.directory.require_lock()
            remove(unfinished)  # what a killed run left
        module.world.barrier(f"writing the checkpoint of step {module.steps_done}")
        module.check_weights(f"the checkpoint of step {module.steps_done}")
        try:
            with module.world.collective(f"writing the checkpoint of step {module.steps_done}"):
                trainer.save_checkpoint(unfinished)
            write_digests_together(module.world, unfinished, target)
            if module.world.first:
                os.replace(unfinished, target)  # noqa: PTH105 - atomic on every platform
        except (OSError, RuntimeError, PathError, CheckpointException) as error:
            if module.world.first:
                remove(unfinished)
            last = self.directory.latest_checkpoint() or "missing: none was made before"
            raise CheckpointError(
                f"cannot write {target}: {cause_of(error)}. Make room or set run_dir elsewhere, then go on with "
                f"--resume; the last checkpoint is {last}."
            ) from error
        if module.world.first:
            self.tell(target)
            for old in self.directory.all_checkpoints()[: -self.keep]:
                remove(old)
        module.world.barrier(f"the end of the checkpoint of step {module.steps_done}")

    def tell(self, checkpoint: Path) -> None:
        """Say once where checkpoints lie and what one takes: with the optimizer's state, several times the model."""
        if not self.told:
            self.told = True
            self.console.say(f"checkpoint {checkpoint}: {size_of(checkpoint)}; the latest {self.keep} are kept")


def _nothing() -> None:
    """In place of what must not happen."""


class Interrupts(Callback):
    """SIGTERM and Ctrl-C end the run between updates, with its finished steps saved."""

    def __init__(self, module: PolicyModule) -> None:
        world = module.world
        self.interruption = Interruption(
            lambda: module.updating or module.recording or world.exchanging or world.ending
        )
        self.listening = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has set its own handlers by now, which would start a collective from within a signal.

        Before each batch it asks all ranks whether a signal came, without a limit, and hides what goes wrong: a rank
        that is stopped in between would hold up the others. Here ranks tell each other.
        """
        assert isinstance(pl_module, PolicyModule)
        pl_module.world.asked_to_stop = lambda: self.interruption.pending
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        self.listening.enter_context(self.interruption.listening())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A signal that came during the update, or while its step was written, is heard now."""
        self.interruption.check()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """And one that came while an evaluation was exchanged or written, now."""
        self.interruption.check()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The handlers of before, once all callbacks have done what they do at the end of training."""
        self.listening.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The handlers of before."""
        self.listening.close()
