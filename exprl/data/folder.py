"""Which files of a folder are meant: nothing in it is left out without a word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from exprl.data.files import KINDS, ending_of
from exprl.errors import DataError

ABOUT = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What says something about the data and is none."""
SPLITS = {
    word: split
    for split, words in {
        "train": "train training",
        "validation": "validation valid dev val",
        "test": "test testing eval evaluation",
    }.items()
    for word in words.split()
}
"""The words in names of files and folders that say a split, as the `datasets` library has them."""
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\b")
NAMED = 3


def tables_in(folder: Path) -> list[Path]:
    """The files of tables in a folder and the folders in it, in order; hidden ones are no data."""
    found = sorted(file for file in folder.rglob("*") if ending_of(file) in KINDS and file.name not in ABOUT)
    shown = [file for file in found if not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)]
    return [file for file in shown if file.is_file()]


def says_which(folder: Path) -> bool:
    """Whether the folder's card names the files that are read."""
    card = folder / "README.md"
    return card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace")


def files_of(folder: Path, split: str) -> list[Path]:
    """The files of one split; raises `DataError` where a file would be left out that may have been meant."""
    files = tables_in(folder)
    if not files:
        raise DataError(f"source 'hub': the folder {folder} has no files that end in {', '.join(KINDS)}.")
    _check_kinds(folder, files)
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(file.relative_to(folder)), []).append(file)
    if set(by_split) == {""}:  # no name says one: all is for training
        by_split = {"train": files}
    _check_splits(folder, by_split)
    if split not in by_split:
        raise DataError(
            f"source 'hub': the folder {folder} has no split {split!r} by the names of its files. It has "
            f"{_told(folder, by_split)}. Set split to one of these (parts of one: offset, limit), or path to one file."
        )
    return by_split[split]


def split_of(path: Path) -> str:
    """The split that a file's folders say, else its name; the empty word where none is said.

    >>> [split_of(Path(name)) for name in ("test/a.csv", "a-dev_2.csv", "hard-00000-of-00001.parquet", "a.csv")]
    ['test', 'validation', 'hard', '']
    """
    if shard := SHARD.match(path.name):
        return SPLITS.get(shard[1], shard[1])
    for parts in (path.parts[:-1], [path.name]):
        said = {SPLITS[word]: None for part in parts for word in re.split(r"[-._ 0-9]+", part) if word in SPLITS}
        if said:
            return " or ".join(said)
    return ""


def _check_kinds(folder: Path, files: Iterable[Path]) -> None:
    kinds: dict[str, list[Path]] = {}
    for file in files:
        kinds.setdefault(KINDS[ending_of(file)], []).append(file)
    if len(kinds) > 1:
        raise DataError(
            f"source 'hub': the folder {folder} has tables of several kinds ({_told(folder, kinds)}), which are not "
            "read as one. Set path to one file, or to a folder with one kind."
        )


def _check_splits(folder: Path, by_split: Mapping[str, list[Path]]) -> None:
    """Raise `DataError` for files that are of no split where others are of one, or of several."""
    unclear = {split: files for split, files in by_split.items() if not split or " or " in split}
    if unclear:
        said = {split: files for split, files in by_split.items() if split not in unclear}
        raise DataError(
            f"source 'hub': in the folder {folder} it is not clear by its name which split a file is of: "
            f"{_told(folder, {split or 'none is said': files for split, files in unclear.items()})}"
            f"{f' (beside {_told(folder, said)})' if said else ''}. Give it a name like extra-train.csv, move it "
            "out, or set path to one file."
        )


def _told(folder: Path, groups: Mapping[str, list[Path]]) -> str:
    return "; ".join(
        f"{name}: {', '.join(str(file.relative_to(folder)) for file in files[:NAMED])}{', …' * (len(files) > NAMED)}"
        for name, files in groups.items()
    )
