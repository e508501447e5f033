"""The texts that shape a run beside its config: one that has changed is found out when the run is resumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path

from exprl.errors import RunDirectoryError
from exprl.files.disk import read_json


def check_texts(file: Path, texts: Mapping[str, str], of_files: Mapping[str, str]) -> None:
    """Compare with the texts that a run was started with; a run without a file, of an earlier version, passes.

    Args:
        file: where they were written, as JSON.
        texts: those of now by what they are, such as the judge's prompt.
        of_files: those that `check_files` has compared.

    Raises:
        RunDirectoryError: one has changed.
        PathError: the file is damaged.
    """
    kept = _kept(file)
    if kept is not None:
        _compare(file, kept, texts, [name for name in {**kept, **texts} if name not in of_files])


def check_files(file: Path, of_files: Mapping[str, str]) -> None:
    """The same of the texts of files alone, which needs no model; those of no name in `file` pass."""
    kept = _kept(file)
    if kept is not None:
        _compare(file, kept, of_files, [name for name in of_files if name in kept])


def _kept(file: Path) -> dict[str, str] | None:
    return read_json(file, "Delete it to resume without comparing texts.") if file.is_file() else None


def _compare(file: Path, kept: Mapping[str, str], texts: Mapping[str, str], names: Iterable[str]) -> None:
    for name in names:
        if kept.get(name) != texts.get(name):
            raise RunDirectoryError(
                f"run_dir {file.parent} was started with another text: {name}, "
                f"{_difference(kept.get(name), texts.get(name))}. Resume with the same text, or set run_dir=... for a "
                "new run."
            )


def _difference(before: str | None, now: str | None) -> str:
    """Where two texts first differ, in words.

    >>> _difference("a", "b")
    "line 1 was 'a' and is 'b'"
    """
    if before is None or now is None:
        return "which is new" if before is None else "which is gone"
    lines = zip_longest(before.splitlines(keepends=True), now.splitlines(keepends=True), fillvalue="")
    number, (old, new) = next((n, pair) for n, pair in enumerate(lines, start=1) if pair[0] != pair[1])
    return f"line {number} was {_shown(old, new)!r} and is {_shown(new, old)!r}"


def _shown(line: str, other: str, width: int = 60) -> str:
    """A line, from shortly before it differs from the other if it is long."""
    same = next((n for n, (a, b) in enumerate(zip(line, other, strict=False)) if a != b), min(len(line), len(other)))
    start = max(0, same - width // 3) if len(line) > width else 0
    end = "..." if len(line) > start + width else ""
    return ("..." if start else "") + line[start : start + width].rstrip("\n") + end
