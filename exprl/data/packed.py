"""Files that are packed, read as if they were not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from exprl.data.files import require
from exprl.errors import DataError


def opened(path: Path) -> BinaryIO:
    """A file's bytes, unpacked; raises `DataError` for one that cannot be unpacked, `OSError` as `open` does."""
    unpack = UNPACK.get(path.suffix.lower())
    if unpack is None:
        return path.open("rb")
    try:
        return io.BytesIO(unpack(path.read_bytes()))
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, ValueError) as error:
        raise DataError(f"{path}: cannot be unpacked ({error}). Is it whole, and packed as its name says?") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(f"{path}: cannot be unpacked ({error}). Is it whole, and packed as its name says?") from error


def _unzip(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [item.filename for item in archive.infolist() if not item.is_dir()]
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} files, not one; unpack it and give the folder")
        return archive.read(names[0])


def _zstd(data: bytes) -> bytes:
    arrow = require("pyarrow", "hub")
    return bytes(arrow.input_stream(arrow.BufferReader(data), compression="zstd").read())


UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": _zstd,
    ".zip": _unzip,
}
