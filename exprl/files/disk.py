"""Paths that options name, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from exprl.errors import PathError

LONGEST_NAME = 255
"""Bytes; what Linux file systems allow for the name of one file or folder."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: `Path` folds the second
_ROOM = "Make room or choose another place"


def local_path(given: str | os.PathLike[str], option: str) -> Path:
    """The path that `option` names, its `~` expanded: for every path a run writes to, so that all lies in one place.

    Raises:
        PathError: it is a URL, has a name longer than `LONGEST_NAME` bytes or a NUL, or its `~user` has no home.
    """
    text = os.fspath(given)
    if _URL.match(text):
        raise PathError(
            f"{option}: {text} is a URL, but this must be a path of a file system that is mounted here. Mount it, or "
            "copy to or from it."
        )
    if "\0" in text:
        raise PathError(f"{option}: {text!r} has a NUL character in it. Give a path without.")
    try:
        path = Path(text).expanduser()
        longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    except (RuntimeError, UnicodeEncodeError) as error:
        raise PathError(f"{option}: {text!r} cannot be a path here ({error}). Write it out in full.") from error
    if longest > LONGEST_NAME:
        raise PathError(
            f"{option}: a name of {longest} bytes in {text[:40]}… is too long, at most {LONGEST_NAME} are allowed."
        )
    return path


def check_ordinary(path: Path, *, folder: bool = False) -> None:
    """Raise `OSError` where `path` is there but no file (or folder): to open a pipe would wait for its other end."""
    if path.exists() and not path.is_file() and not (folder and path.is_dir()):
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))


def check_can_write(path: Path, option: str) -> None:
    """Raise `PathError` where a file cannot be written at `path`: to be found before the work that it is for."""
    if path.exists() and not path.is_file():
        raise PathError(f"{option}: {path} is no ordinary file, so nothing is written there. Give a file's name.")
    _check_room(path, option)


def check_new_file(path: Path, option: str) -> None:
    """The same; also where there is something already."""
    check_can_write(path, option)
    if path.exists():
        raise PathError(f"{option}: {path} is there already. Give another name, or --overwrite to replace it.")


def check_new_folder(path: Path, option: str) -> None:
    """Raise `PathError` where no folder can be made at `path`, or there is something already."""
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise PathError(f"{option}: {path} already holds something. Give a new folder; nothing is overwritten.")
    except OSError as error:
        raise PathError(f"{option}: {path} cannot be read ({reason(error)}). Give another folder.") from error
    _check_room(path, option)


def _check_room(path: Path, option: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise PathError(f"{option}: {path} cannot be written ({reason(error)}). {_ROOM}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a killed process or a full disk leaves the old one; raises `PathError`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """See `write_text`."""
    with _whole(path) as file:
        file.write(content)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """The same with lines that are made one by one."""
    with _whole(path) as file:
        file.writelines(f"{text}\n".encode("utf-8", "backslashreplace") for text in lines)


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A draft, which takes the place of `path` once it is written; raises `PathError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        draft = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
            draft.chmod(0o644)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON, whole or not at all; raises `PathError`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON line; NaN and infinity become null, as JSON has neither.

    Raises:
        PathError: it cannot be written; a part of the line may have been.
    """
    line = {key: None if isinstance(item, float) and not math.isfinite(item) else item for key, item in value.items()}
    append_text(path, json.dumps(line) + "\n")


def append_text(path: Path, text: str) -> None:
    """Append whole lines; raises as `append_line` does."""
    try:
        check_ordinary(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_text(path: Path, advice: str) -> str:
    """A file that exprl wrote; raises `PathError` with `advice` where it cannot be read as text."""
    try:
        check_ordinary(path)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PathError(f"{path} cannot be read ({reason(error)}). {advice}") from error


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """A JSON object that exprl wrote; raises `PathError` with `advice` where it is damaged."""
    return parse_object(read_text(path, advice), str(path), advice)


def parse_object(text: str | bytes, where: str, advice: str) -> dict[str, Any]:
    """The JSON object in a file or line, named `where`; raises `PathError` with `advice` where it is damaged."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PathError(f"{where} is damaged, it is no JSON ({error}). {advice}") from error
    if not isinstance(value, dict):
        raise PathError(f"{where} is damaged, it holds a {type(value).__name__} instead of an object. {advice}")
    return value


def reason(error: Exception) -> str:
    """What an error says, without the path where the message around it has that."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _unwritable(path: Path, error: OSError) -> PathError:
    return PathError(f"cannot write {path} ({reason(error)}). {_ROOM}.")
