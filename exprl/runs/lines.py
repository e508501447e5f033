"""Files of one JSON object a line, each with its `step`: cut back to a step, and what of them is damaged."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exprl.errors import PathError
from exprl.runs.files import check_ordinary, reason


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a file was cut to: readable lines up to the step; and lines in the midst of it that were left out.

    `damaged` cannot be read; `doubled` are of a step that has its one line already.
    """

    kept: int = 0
    damaged: int = 0
    doubled: int = 0


def cut_after(path: Path, step: int, *, once: bool = False) -> Cut:
    """Keep the lines up to `step`; what a killed run wrote after its checkpoint goes, also a last line it left half.

    A file with damaged or doubled lines in it is kept beside the new one, as `<name>.damaged`.

    Args:
        path: the file; it need not be there.
        step: the last to keep.
        once: a step has one line, the first.

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
                kept = damaged = doubled = 0
                seen: set[int] = set()
                unreadable = False
                for line in file:
                    damaged += unreadable  # the one before was not the last
                    found = _step_of(line)
                    unreadable = found is None
                    if found is None or found > step:
                        continue
                    if once and found in seen:
                        doubled += 1
                    else:
                        seen.add(found)
                        draft.write(line if line.endswith(b"\n") else line + b"\n")
                        kept += 1
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
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PathError(f"{path}, line {number}: damaged, it is no JSON ({error}). {advice}") from error
        if not isinstance(value, dict):
            raise PathError(f"{path}, line {number}: damaged, it holds a {type(value).__name__}. {advice}")
        yield value


def _step_of(line: bytes) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
