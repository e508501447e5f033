"""The folder of files exprl can make again, and how one is added whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from exprl.errors import ModelError

CACHE_VARIABLE = "EXPRL_CACHE"


def cache_folder() -> Path:
    """`$EXPRL_CACHE`, else `~/.cache/exprl`; raises `ModelError` where there is neither."""
    given = os.environ.get(CACHE_VARIABLE)
    try:
        return Path(given).expanduser() if given else Path.home() / ".cache" / "exprl"
    except RuntimeError as error:
        raise ModelError(f"no home folder is known ({error}): set {CACHE_VARIABLE} or HOME to a folder.") from error


@contextmanager
def draft_of(
    folder: Path, *, advice: str = f"set {CACHE_VARIABLE} to another folder", shared: bool = True
) -> Iterator[Path]:
    """An empty folder to fill; it takes the name `folder` at once when the block ends, and goes when it raises.

    Where another process was faster its folder stays. Processes that share what they make hold the same then.

    Raises:
        ModelError: the folder's place cannot be written, or somebody else was faster with something that is not shared;
            `advice` says what to do then.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ModelError(f"cannot write {folder.parent} ({error}): {advice}.") from error
    try:
        try:
            yield draft
            draft.rename(folder)
        except (OSError, SafetensorError) as error:  # the latter is what a full disk is to weights
            if not (shared and folder.is_dir()):
                raise ModelError(f"cannot write {folder} ({error}): {advice}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
