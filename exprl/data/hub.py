"""Problems from the Hugging Face Hub, or from local files and folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from exprl.component import option
from exprl.config.ranges import NonEmpty
from exprl.data.base import ProblemSource
from exprl.data.files import KINDS, PACKED, SOURCE_OF, check_installed, ending_of, existing, require
from exprl.data.folder import files_of, says_which, tables_in
from exprl.data.local import read_tables
from exprl.data.rows import Row, TableOptions, read_problems, window
from exprl.data.tables import mapped, narrow, numbered, with_names, written
from exprl.errors import DataError, did_you_mean
from exprl.files.disk import local_path
from exprl.registry import SOURCES
from exprl.types import Problem

INDEX = "__index_level_0__"
"""What `datasets` calls the labels of rows that pandas makes."""
# what `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in a folder
SAVED = ("state.json", "dataset_dict.json")


@SOURCES.register("hub")
class HubSource(TableOptions, ProblemSource):
    """A data set by its name on the Hub, a local file or folder, or what `save_to_disk` of `datasets` wrote.

    Files on this machine are read by exprl itself, unless the folder is `save_to_disk`'s or its card says what is read.
    """

    path: NonEmpty = option(help="name on the Hub (owner/name), or local file or folder")
    subset: NonEmpty | None = option(
        default=None, help="configuration of the data set, where it has several", of="path"
    )
    split: NonEmpty = option(default="train", help="which split")
    revision: NonEmpty | None = option(
        default=None, help="branch, tag or commit on the Hub; null: the newest", of="path"
    )

    @classmethod
    def preflight(cls, config: Any) -> None:
        """Who reads it must be there; of the Hub nothing is asked."""
        place = local_path(config.path, "path")
        if _is_read_here(place):
            _files(place, config)
        else:
            check_installed("datasets", "hub")
        if not place.exists() and _means_a_file(config.path):
            existing(config.path, "hub")

    def load(self) -> list[Problem]:
        """The split's problems; raises `DataError` naming data set or file, and row."""
        path, split = self.path, self.split
        place = local_path(path, "path")
        if _is_read_here(place):
            files = _files(place, self.config)
            return self._of_file(place) if place.is_file() else self._of_files(files, place)
        if not place.exists() and _means_a_file(path):
            existing(path, "hub")
        return read_problems(self._rows(self._dataset(place)), self.columns, f"{path} [{split}]")

    def _of_file(self, file: Path) -> list[Problem]:
        if (name := SOURCE_OF.get(ending_of(file))) is None:
            return self._of_files([file], file)
        source = SOURCES.get(name)
        options = {key: getattr(self, key) for key in ("columns", "offset", "limit")}
        problems: list[Problem] = source(path=str(file), **options).load()
        return problems

    def _of_files(self, files: Sequence[Path], place: Path) -> list[Problem]:
        options = self.config
        rows = enumerate(read_tables(files, options.columns, options.split), start=1)
        named = (
            (where, f"{place.name}-{options.split}-{number}", row)
            for number, (where, row) in window(rows, options.offset, options.limit)
        )
        return read_problems(named, options.columns, str(place))

    def _dataset(self, place: Path) -> Any:
        datasets = require("datasets", "hub")
        options = self.config
        try:
            if any((place / name).is_file() for name in SAVED):
                return self._split_of(datasets.load_from_disk(str(place)))
            loaded = datasets.load_dataset(
                str(place) if place.is_dir() else options.path,
                options.subset,
                split=options.split,
                revision=options.revision,
                trust_remote_code=False,
                **_reading(place, options),
            )
        except (OSError, ValueError, ImportError, datasets.exceptions.DatasetsError) as error:
            # OSError covers a missing data set, no network and a cut-off download; ValueError subset and split
            raise DataError(f"source 'hub': cannot load {self._name()}: {_reason(error, datasets)}") from error

        _check_aligned(loaded, self._name())
        return loaded

    def _split_of(self, saved: Any) -> Any:
        if not isinstance(saved, dict):
            return saved
        if self.split not in saved:
            raise DataError(f"source 'hub': {self._name()}: no such split. {did_you_mean(self.split, saved)}")
        return saved[self.split]

    def _name(self) -> str:
        subset = f", subset {self.subset!r}" if self.subset else ""
        return f"{self.path!r}{subset}, split {self.split!r}"

    def _rows(self, dataset: Any) -> Iterator[tuple[str, str, Row]]:
        stem = Path(self.path).name
        where, names = f"{self.path} [{self.split}]", dataset.column_names
        wanted = dataset.select_columns(sorted(set(mapped(self.columns, names).values())))
        kinds = narrow(wanted.features.arrow_schema)
        for number, row in window(numbered(wanted, where), self.offset, self.limit):
            yield (
                f"{where}, row {number}",
                f"{stem}-{self.split}-{number}",
                with_names(written(row, kinds), names),
            )


def _files(place: Path, options: Any) -> list[Path]:
    """The files that are meant; raises `DataError` where there are none, or files have not what is asked for."""
    if place.is_file() and ending_of(place) not in KINDS:
        raise DataError(
            f"source 'hub': {place} is no table by its ending. Give a file that ends in {', '.join(KINDS)}, or in one "
            f"of these and {', '.join(PACKED)}."
        )
    _check_options(place, options)
    return files_of(place, options.split) if place.is_dir() else [place]


def _check_options(place: Path, options: Any) -> None:
    """Raise `DataError` for what files on this machine do not have."""
    given = {name: value for name in ("subset", "revision") if (value := getattr(options, name)) is not None}
    if any(sign in options.split for sign in "[]+%:"):
        given["split"] = options.split
    for name, value in given.items():
        what = "one file" if place.is_file() else "a folder of files"
        raise DataError(f"source 'hub': {place} is {what}, of which there is no {name} {value!r}. Use offset, limit.")


def _is_read_here(place: Path) -> bool:
    """Whether it is files that need nobody else: what `datasets` saved, or a card describes, is for that library."""
    if place.is_dir():
        return not says_which(place) and not any((place / name).is_file() for name in SAVED)
    return place.is_file()


def _means_a_file(path: str) -> bool:
    """Whether a path that is not there cannot be a name on the Hub."""
    return path.count("/") > 1 or path.startswith((".", "~", "/")) or Path(path).suffix.lower() in KINDS


def _reading(place: Path, options: Any) -> dict[str, Any]:
    """What `datasets` is told of local files: mapped cells of CSV stay text, as 007 is no 7 and None may be a word."""
    tables = tables_in(place) if place.is_dir() else []
    if not tables or any(KINDS[ending_of(file)] != "CSV" for file in tables):
        return {}
    converters = {name: str for role, name in options.columns.by_role().items() if role not in ("steps", "variants")}
    return {"converters": converters, "keep_default_na": False, "na_values": [""]}


def _check_aligned(dataset: Any, name: str) -> None:
    """Raise `DataError` for CSV whose rows have a cell more than the header.

    pandas takes their first cell for a label of the row, and every other for that of the column before it: references
    would stand where questions are.
    """
    if getattr(dataset, "builder_name", None) == "csv" and INDEX in dataset.column_names:
        raise DataError(
            f"source 'hub': {name}: rows have more cells than the header names columns, so that cells would count for "
            "the wrong column. Put cells that hold a comma in quotes, and end no row with one."
        )


def _reason(error: BaseException, datasets: Any) -> str:
    """What the library says, but for its messages about cells, which may show those of a reference."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError):
        return f"a file cannot be read ({type(error.__cause__ or error).__name__})."
    return str(error)
