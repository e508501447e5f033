"""The rollouts of a run, or of anything in steps: a folder with a file of each rank for each step."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from exprl.errors import DataError
from exprl.files.disk import local_path, write_bytes
from exprl.rollouts.format import Asked, decode, decode_asked, encode
from exprl.rollouts.stored import StoredGroup
from exprl.runs.directory import RunDirectory, is_run

SUFFIX = ".npz"
_NAME = re.compile(r"step-(\d+)-(\d+)-of-(\d+)\.npz")


def file_name(step: int, rank: int = 0, ranks: int = 1) -> str:
    """A rank's file of a step, so that a listing tells whether one is missing.

    >>> file_name(12, 0, 8)
    'step-000012-00000-of-00008.npz'
    """
    return f"step-{step:06d}-{rank:05d}-of-{ranks:05d}{SUFFIX}"


class RolloutStore(Mapping[int, tuple[StoredGroup, ...]]):
    """Steps with their groups; a step is read when it is asked for, and not kept.

    A step of which a rank's file is missing is none: its rollouts are not all there.

    Args:
        folder: where the files lie; it need not be there to be written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = local_path(folder, "rollouts")

    # ------------------------------------------------------------------ reading

    def __iter__(self) -> Iterator[int]:
        """The steps that are whole, in order."""
        return iter([step for step, files in self._found().items() if files])

    def __len__(self) -> int:
        return sum(bool(files) for files in self._found().values())

    def __getitem__(self, step: int) -> tuple[StoredGroup, ...]:
        """The groups of a step, those of rank 0 first.

        Raises:
            KeyError: there is no such step.
            DataError: a file of it is damaged; it is named.
        """
        files = self._found().get(step)
        if not files:
            raise KeyError(step)
        return tuple(group for file in files for group in _of_step(file, step))

    def asked(self, step: int) -> list[Asked]:
        """Which problems a step has, without reading its tokens; raises as reading it does."""
        return [one for file in self._found().get(step, []) for one in decode_asked(file)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    def _found(self) -> dict[int, list[Path]]:
        """The files of each step by rank; none of a step that lacks one."""
        by_step: defaultdict[int, dict[tuple[int, int], Path]] = defaultdict(dict)
        for path, step, rank, ranks in self._files():
            by_step[step][ranks, rank] = path
        return {step: _whole(by_step[step]) for step in sorted(by_step)}

    def _files(self) -> Iterator[tuple[Path, int, int, int]]:
        for path in self.folder.glob(f"step-*{SUFFIX}"):
            if match := _NAME.fullmatch(path.name):
                step, rank, ranks = map(int, match.groups())
                yield path, step, rank, ranks

    # ------------------------------------------------------------------ writing

    def write(self, step: int, groups: Sequence[StoredGroup]) -> None:
        """A whole step, or nothing; raises `PathError`."""
        self.put(file_name(step), encode(groups, step=step))

    def put(self, name: str, content: bytes) -> None:
        """A file that `encode` made, whole or not at all; raises `PathError`."""
        write_bytes(self.folder / name, content)

    def cut_after(self, last: int) -> None:
        """Forget the steps after `last`: they will be made again."""
        for path, step, _, _ in self._files():
            if step > last:
                path.unlink(missing_ok=True)

    def keep(self, count: int) -> None:
        """Forget all but the latest `count` steps."""
        files = list(self._files())
        latest = sorted({step for _, step, _, _ in files})[-count:]
        for path, step, _, _ in files:
            if step not in latest:
                path.unlink(missing_ok=True)


def load_rollouts(run: str | os.PathLike[str]) -> RolloutStore:
    """The rollouts of a run, or of a folder that `exprl judge` wrote, by step and read as they are asked for.

    >>> load_rollouts("runs/quickstart")[12]  # doctest: +SKIP
    (StoredGroup(...), ...)

    Raises:
        DataError: there are none, or no such folder.
    """
    folder = local_path(run, "run")
    if not folder.exists():
        raise DataError(
            f"{folder} does not exist. Give a run that kept its rollouts, or a folder that exprl judge wrote."
        )
    store = RolloutStore(RunDirectory(folder).rollouts if is_run(folder) else folder)
    if not store:
        raise DataError(
            f"{store.folder}: no rollouts of a step are there. Give a run that kept them (trainer.rollouts_every), or "
            "a folder that exprl judge wrote."
        )
    return store


def _whole(files: Mapping[tuple[int, int], Path]) -> list[Path]:
    for ranks in sorted({ranks for ranks, _ in files}):
        if all((ranks, rank) in files for rank in range(ranks)):
            return [files[ranks, rank] for rank in range(ranks)]
    return []


def _of_step(file: Path, step: int) -> tuple[StoredGroup, ...]:
    found, groups = decode(file)
    if found != step:
        raise DataError(f"{file}: it holds the rollouts of step {found}, so it is not the file that had this name.")
    return groups
