"""TensorBoard's event files: a copy of the metrics for looking at, which never ends a run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch.utils.tensorboard.summary import hparams

from exprl.files.disk import reason

log = logging.getLogger(__name__)


class EventFiles(TensorBoardLogger):
    """Lightning's logger, except that a full disk or a folder that cannot be written stops it alone, with a warning."""

    failed = False

    def __init__(self, folder: Path, *, name: str) -> None:
        super().__init__(folder, name="", version=name, default_hp_metric=False)
        _quiet_writers()

    def go_on_after(self, step: int) -> None:
        """What a killed run wrote of later steps is not shown; to be said before anything is written."""
        self._kwargs["purge_step"] = step + 1

    @property
    def experiment(self) -> Any:
        """Lightning's writer, asked for before the first step; where it cannot be made, one that writes nothing."""
        if self._experiment is None:
            self._attempt(lambda: super(EventFiles, self).experiment)
        return _DummyExperiment() if self.failed else super().experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """The metrics of a step."""
        self._attempt(lambda: super(EventFiles, self).log_metrics(metrics, step))

    def log_options(self, options: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """The page HPARAMS: the run's options by dotted keys, beside the last values of these metrics so far.

        Written when a run starts, so a killed run is on it as well; the values come from the metrics' own curves.
        """
        values = {
            key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in options.items()
        }
        self.hparams.update(values)  # for Lightning's hparams.yaml
        experiment, start, _ = hparams(values, dict.fromkeys(metrics, 0.0))

        def write() -> None:
            for summary in (experiment, start):
                self.experiment._get_file_writer().add_summary(summary)

        if not self.failed:
            self._attempt(write)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's own."""
        self._attempt(lambda: super(EventFiles, self).log_hyperparams(*args, **kwargs))

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's own."""
        self._attempt(lambda: super(EventFiles, self).log_graph(*args, **kwargs))

    def save(self) -> None:
        """Write what is waiting."""
        self._attempt(super().save)

    def finalize(self, status: str) -> None:
        """At the end of a run, however it ended."""
        self._attempt(lambda: super(EventFiles, self).finalize(status))

    def _attempt(self, write: Callable[[], object]) -> None:
        if self.failed:
            return
        try:
            write()
        except Exception as error:  # noqa: BLE001 - its writer hands on whatever stopped it in a thread of its own
            self.failed = True
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # Lightning blames the value
            log.warning(
                "TensorBoard's files cannot be written (%s): none from here on, metrics.jsonl has them", reason(cause)
            )


def _quiet_writers() -> None:
    """The writer's thread keeps what stopped it for the next write, and ends in a traceback besides; not here."""
    print_traceback = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.thread, _AsyncWriterThread):
            print_traceback(arguments)

    if not getattr(print_traceback, "_exprl", False):
        hook._exprl = True  # type: ignore[attr-defined]
        threading.excepthook = hook
