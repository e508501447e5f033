"""Files of one JSON object a line, each with its `step`: cut back to a step, and what of them is damaged."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exprl.errors import PathError
from exprl.files.disk import check_ordinary, parse_object, reason

Kind = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a file was cut to: readable lines up to the step, by kind; and lines in the midst of it that were left out.

    `damaged` cannot be read; `doubled` are of a step that has its one line of their kind already.
    """

    kept: Mapping[str, int] = field(default_factory=dict)
    damaged: int = 0
    doubled: int = 0


def cut_after(path: Path, step: int, *, kind: Kind) -> Cut:
    """Keep the lines up to `step`; what a killed run wrote after its checkpoint goes, also a last line it left half.

    A step has one line of each kind, the first. A file with damaged or doubled lines in it is kept beside the new one,
    as `<name>.damaged`.

    Args:
        path: the file; it need not be there.
        step: the last to keep.
        kind: tells kinds of lines apart, which are counted each for itself.

    Raises:
        PathError: it cannot be read or written; it is left as it was.
    """
    if not path.exists():
        return Cut()
    try:
        check_ordinary(path)
        with (
            path.open("rb") as file,
            tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as draft,
        ):
            try:
                damaged = doubled = 0
                kept: Counter[str] = Counter()
                seen: set[tuple[int, str]] = set()
                unreadable = False
                for line in file:
                    damaged += unreadable  # the one before was not the last
                    found = _read(line)
                    unreadable = found is None
                    if found is None or found[0] > step:
                        continue
                    place = (found[0], kind(found[1]))
                    if place in seen:
                        doubled += 1
                    else:
                        seen.add(place)
                        draft.write(line if line.endswith(b"\n") else line + b"\n")
                        kept[place[1]] += 1
                draft.close()
                if damaged or doubled:
                    path.replace(path.with_name(f"{path.name}.damaged"))
                Path(draft.name).chmod(0o644)
                os.replace(draft.name, path)  # noqa: PTH105 - atomic on every platform
            except BaseException:
                Path(draft.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise PathError(f"cannot read or write {path} ({reason(error)}). Make room, then go on.") from error
    return Cut(kept=kept, damaged=damaged, doubled=doubled)


def count_lines(path: Path, step: int, *, kind: Kind) -> Counter[str]:
    """The readable lines of this very step, by kind; raises `PathError` where the file cannot be read."""
    try:
        check_ordinary(path)
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise PathError(f"{path} cannot be read ({reason(error)}).") from error
    found = (_read(line) for line in content.splitlines())
    return Counter(kind(line[1]) for line in found if line is not None and line[0] == step)


def drop_half_line(path: Path) -> None:
    """Cut off what a killed process wrote after the last whole line; raises `PathError`."""
    try:
        check_ordinary(path)
        with path.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
    except OSError as error:
        raise PathError(f"cannot read or write {path} ({reason(error)}).") from error


def read_lines(path: Path, advice: str) -> Iterator[dict[str, Any]]:
    """The objects of a file, one a line; raises `PathError` naming the first line that holds none."""
    try:
        check_ordinary(path)
        content = path.read_bytes()
    except OSError as error:
        raise PathError(f"{path} cannot be read ({reason(error)}). {advice}") from error
    for number, line in enumerate(content.splitlines(), start=1):
        yield parse_object(line, f"{path}, line {number},", advice)


def _read(line: bytes) -> tuple[int, dict[str, Any]] | None:
    """A line's step and content; None where it has none."""
    try:
        content: dict[str, Any] = json.loads(line)
        return int(content["step"]), content
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
