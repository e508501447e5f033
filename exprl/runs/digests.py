"""SHA-256 digests beside every checkpoint, so that no damaged one is taken for a whole one.

`step-000040.ckpt.sha256` holds a line a file, as `sha256sum` writes and checks them (`sha256sum -c` in `checkpoints/`).
It is in place before the checkpoint gets its name, so a checkpoint without one is from before there were digests.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from exprl.files.disk import check_ordinary, reason, write_text

ALL = slice(None)


def digest_file(checkpoint: Path) -> Path:
    """Where the digests of a checkpoint lie."""
    return checkpoint.with_name(f"{checkpoint.name}.sha256")


def digests(checkpoint: Path, part: slice = ALL) -> dict[str, str]:
    """The digest of each file of a checkpoint by its path within it, "" for one that is a file; of some files alone."""
    return {_name(file, checkpoint): _digest(file) for file in _files(checkpoint)[part]}


def write_digests(checkpoint: Path, found: Mapping[str, str]) -> None:
    """Write the digests of a checkpoint that has, or is about to get, the name `checkpoint`; raises `PathError`."""
    lines = [f"{digest}  {Path(checkpoint.name, name).as_posix()}\n" for name, digest in sorted(found.items())]
    write_text(digest_file(checkpoint), "".join(lines))


def damage(checkpoint: Path, part: slice = ALL) -> str | None:
    """What is wrong with a checkpoint, or with some of its files, in words; None if all is as it was written.

    Without digests the checksums inside a checkpoint that is one file are tried; a folder's files have none.
    """
    try:
        check_ordinary(checkpoint, folder=True)
        files = _files(checkpoint)
        if digest_file(checkpoint).exists():
            check_ordinary(digest_file(checkpoint))
        else:
            return _broken_archive(checkpoint) if checkpoint.is_file() and 0 in range(1)[part] else None
        expected = _read(checkpoint)
        names = [_name(file, checkpoint) for file in files]
        if set(names) != set(expected):
            missing = sorted(set(expected) - set(names)) or sorted(set(names) - set(expected))
            return f"{missing[0]} is missing or too much"
        for name, digest in digests(checkpoint, part).items():
            if digest != expected[name]:
                return f"the SHA-256 of {Path(checkpoint.name, name).as_posix()} is not that of its digest file"
    except (OSError, ValueError) as error:
        return reason(error)
    return None


def _read(checkpoint: Path) -> dict[str, str]:
    lines = digest_file(checkpoint).read_text(encoding="ascii").splitlines()
    found: dict[str, str] = {}
    for line in lines:
        digest, path = line.split("  ", 1)
        name = Path(path).relative_to(checkpoint.name).as_posix()
        found["" if name == "." else name] = digest
    return found


def _files(checkpoint: Path) -> list[Path]:
    if checkpoint.is_dir():
        files = sorted(path for path in checkpoint.rglob("*") if not path.is_dir())
        for file in files:
            check_ordinary(file)
        return files
    return [checkpoint]


def _name(file: Path, checkpoint: Path) -> str:
    return "" if file == checkpoint else file.relative_to(checkpoint).as_posix()


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _broken_archive(checkpoint: Path) -> str | None:
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            member = archive.testzip()
            attributes = [info.filename for info in archive.infolist() if info.external_attr]
    except Exception as error:  # noqa: BLE001 - a wrong byte sends it into any decompressor, with any error
        return f"it may be cut off: {error}"
    if attributes:  # torch writes none; where they say "directory", it reads no byte and takes what the memory held
        return f"{attributes[0]} inside it has file attributes, which torch writes nowhere"
    return None if member is None else f"the checksum of {member} inside it is wrong"
