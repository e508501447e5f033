"""What the file sources share: finding files, and optional packages that are imported when they are needed."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from exprl.errors import DataError, did_you_mean

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
KINDS = {
    ending: kind
    for kind, endings in {"CSV": "csv tsv", "JSON": "json jsonl ndjson", "Parquet": "parquet", "Arrow": "arrow"}.items()
    for ending in (f".{name}" for name in endings.split())
}
"""What the readers of tables are told of a file by the ending of its name."""
SOURCE_OF = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".jsonl": "jsonl"}
"""The source that reads a kind of file itself."""


def ending_of(path: Path) -> str:
    """What kind of file it is by its name, in small letters, whether packed or not.

    >>> ending_of(Path("x.CSV.gz")), ending_of(Path("x.csv"))
    ('.csv', '.csv')
    """
    return Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower()


PACKAGE = "package:"
"""Before the name of an installed package and a path within it: `package:exprl/configs/data/mixed.jsonl`."""


def existing(path: str, source: str) -> Path:
    """`path` if it is there; a `DataError` with the closest name in its folder otherwise."""
    try:
        found = _in_package(path, source) if path.startswith(PACKAGE) else Path(path).expanduser()
        found.stat()
        return found
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, ValueError) as error:  # no right to look; no home folder; a null byte in the name
        raise DataError(f"source {source!r}: path {path!r} cannot be read ({error}).") from error
    siblings = [item.name for item in found.parent.iterdir()] if found.parent.is_dir() else []
    empty = f"The folder {found.parent.absolute()} is {'empty' if found.parent.is_dir() else 'not there'}."
    hint = did_you_mean(found.name, siblings) if siblings else empty
    raise DataError(f"source {source!r}: no file {found.absolute()}. {hint}")


def _in_package(path: str, source: str) -> Path:
    """The file or folder within an installed package, found without running any of its code."""
    name, _, inner = path.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"source {source!r}: path {path!r}: no package {name!r} is installed. "
            f"Write {PACKAGE}<name>/<path within it>."
        )
    return Path(spec.submodule_search_locations[0], inner)


def existing_file(path: str, source: str) -> Path:
    """Like `existing`, of a file that this source reads; a `DataError` that names the source for any other."""
    found = existing(path, source)
    if found.is_dir():
        raise DataError(f"source {source!r}: {found} is a folder. Give one file, or set name=hub for a folder of them.")
    other = SOURCE_OF.get(ending_of(found), source)
    if other != source:
        raise DataError(f"source {source!r}: {found} is a {found.suffix} file. Set name={other} for it.")
    return found


def require(module: str, source: str, extra: str = "data") -> Any:
    """An optional package; a `DataError` that says how to install it when it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing_package(module.partition(".")[0], source, extra) from error


def check_installed(module: str, source: str, extra: str = "data") -> None:
    """Raise the `DataError` of `require` without importing anything."""
    if importlib.util.find_spec(module) is None:
        raise missing_package(module, source, extra)


def missing_package(package: str, source: str, extra: str = "data") -> DataError:
    """The error for a package of an extra that is not installed."""
    return DataError(f"source {source!r} needs {package}: pip install 'exprl[{extra}]'")
