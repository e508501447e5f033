"""Problems from the Hugging Face Hub, or from a local folder that the `datasets` library reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exprl.component import option
from exprl.config.ranges import NonEmpty
from exprl.data.base import ProblemSource
from exprl.data.files import require
from exprl.data.jsonl import check_lines
from exprl.data.rows import Row, TableConfig, read_problems, window
from exprl.data.tables import mapped, numbered, with_names
from exprl.errors import DataError, did_you_mean
from exprl.registry import SOURCES
from exprl.runs.files import local_path
from exprl.types import Problem

# what `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in a folder
SAVED = ("state.json", "dataset_dict.json")


@SOURCES.register("hub")
class HubSource(ProblemSource):
    """A data set of the `datasets` library: a name on the Hub, a folder of files, or what `save_to_disk` wrote."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TableConfig):
        """The data set and its columns."""

        path: NonEmpty = option(help="name on the Hub (owner/name) or local folder")
        subset: NonEmpty | None = option(None, "configuration of the data set, where it has several")
        split: NonEmpty = option("train", "which split")
        revision: NonEmpty | None = option(None, "branch, tag or commit on the Hub; null: the newest")

    config: Config

    def load(self) -> list[Problem]:
        """The split's problems; raises `DataError` naming data set and row."""
        path, split = self.config.path, self.config.split
        return read_problems(self._rows(self._dataset()), self.config.columns, f"{path} [{split}]")

    def _dataset(self) -> Any:
        datasets = require("datasets", "hub")
        options, folder = self.config, local_path(self.config.path, "path")
        try:
            if any((folder / name).is_file() for name in SAVED):
                return self._split_of(datasets.load_from_disk(str(folder)))
            return datasets.load_dataset(
                str(folder) if folder.is_dir() else options.path,
                options.subset,
                split=options.split,
                revision=options.revision,
                trust_remote_code=False,
            )
        except (OSError, ValueError, ImportError) as error:
            # OSError covers a missing data set, no network and a cut-off download; ValueError subset and split
            raise DataError(f"source 'hub': cannot load {self._name()}: {error}") from error
        except datasets.exceptions.DatasetsError as error:
            for file in sorted(folder.rglob("*.jsonl")) if folder.is_dir() else []:
                check_lines(file)  # which names the line, as the library does not
            cause = error.__cause__ or error
            raise DataError(
                f"source 'hub': cannot load {self._name()}: a file cannot be read ({type(cause).__name__})."
            ) from error

    def _split_of(self, saved: Any) -> Any:
        if not isinstance(saved, dict):
            return saved
        if self.config.split not in saved:
            raise DataError(f"source 'hub': {self._name()}: no such split. {did_you_mean(self.config.split, saved)}")
        return saved[self.config.split]

    def _name(self) -> str:
        subset = f", subset {self.config.subset!r}" if self.config.subset else ""
        return f"{self.config.path!r}{subset}, split {self.config.split!r}"

    def _rows(self, dataset: Any) -> Iterator[tuple[str, str, Row]]:
        stem = Path(self.config.path).name
        where, names = f"{self.config.path} [{self.config.split}]", dataset.column_names
        wanted = dataset.select_columns(sorted(set(mapped(self.config.columns, names).values())))
        for number, row in window(numbered(wanted, where), self.config.offset, self.config.limit):
            yield f"{where}, row {number}", f"{stem}-{self.config.split}-{number}", with_names(row, names)
