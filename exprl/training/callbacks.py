"""Checkpoints, and what ends a run between two steps."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch.distributed.checkpoint.api import CheckpointException

from exprl.errors import CheckpointError, ExprlError, PathError
from exprl.models.sharding import is_sharded
from exprl.runs.directory import RunDirectory
from exprl.runs.leftovers import WRITING, remove, set_aside
from exprl.runs.parts import cause_of
from exprl.runs.timeline import SAVING
from exprl.terminal.console import Console
from exprl.training.aftermath import assemble
from exprl.training.checkpointing import write_digests_together
from exprl.training.interruption import Interruption
from exprl.training.policy_module import PolicyModule
from exprl.training.room import size_of

log = logging.getLogger(__name__)


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
            with module.phases.mark(SAVING):
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
