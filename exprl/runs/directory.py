"""The folder of a run: created once, resumed on request, never overwritten."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from exprl.config.reading import parse
from exprl.config.saving import flat
from exprl.errors import ConfigError, PathError, RunDirectoryError
from exprl.files.disk import local_path, read_text, reason, write_text
from exprl.files.lock import LOCK, folder_locked, is_at, locked
from exprl.terminal.wording import counted

log = logging.getLogger(__name__)

CHECKPOINT_SUFFIX = ".ckpt"
_NOTHING = "(nothing)"
CHECKPOINT = re.compile(r"step-(\d+)\.ckpt")


class RunDirectory:
    """Paths and atomic writes of one run.

    Holds `config.yaml`, `texts.json` (chat templates and prompts), `metrics.jsonl` (one line a step and
    one an evaluation), `rollouts/`, `timeline/`, `summary.json`, `evaluation/`, `checkpoints/` and
    `tensorboard/`, and while a run is going `.lock`.

    Args:
        path: the folder.
        option: what names it in messages.

    Raises:
        PathError: `path` is a URL or cannot be a path.
    """

    def __init__(self, path: str | Path, option: str = "run_dir") -> None:
        self.path = local_path(path, option)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.rollouts = self.path / "rollouts"
        self.timeline = self.path / "timeline"
        self.summary = self.path / "summary.json"
        self.texts = self.path / "texts.json"
        self.evaluations = self.path / "evaluation"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self._watched: int | None = None  # the lock file, where it is all that keeps others out

    # ------------------------------------------------------------------ who may use it

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, this process alone may write here; a folder made for that goes again if nothing was put into it.

        Raises:
            RunDirectoryError: another process uses it, or it cannot be written.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(_made(self.path))
                folder = stack.enter_context(folder_locked(self.path, f"run_dir {self.path}"))
                file = stack.enter_context(locked(self.path / LOCK, f"run_dir {self.path}"))
                self._watched = None if folder else file
            except RunDirectoryError:
                raise
            except (OSError, PathError) as error:
                raise RunDirectoryError(
                    f"run_dir {self.path}: cannot be written ({reason(error)}). Set run_dir=..."
                ) from error
            yield

    def require_lock(self) -> None:
        """Before something is written that two runs would mix up.

        Raises:
            RunDirectoryError: the lock file was removed or replaced, where the folder itself cannot be locked.
        """
        if self._watched is not None and not is_at(self._watched, self.path / LOCK):
            raise RunDirectoryError(
                f"run_dir {self.path}: {LOCK} was removed while this run had it, so another may be writing there. This "
                "one stops and writes nothing more; go on with --resume once no other is running."
            )

    def check(
        self, config_yaml: str, *, resume: bool, free: Collection[str] = (), mappings: Collection[str] = ()
    ) -> None:
        """Whether a run of this config may use the folder; creates nothing.

        Of its keys those in `free` may be others; those below `mappings` are no options but chosen by who wrote it.

        Raises:
            RunDirectoryError: the folder holds something and `resume` is False, its config is another, or something in
                it is not what a run left.
        """
        if self.path.exists() and any(map(self._is_work, self.path.iterdir())):
            self._check_resumable(config_yaml, resume, free, mappings)

    def create(self, config_yaml: str) -> None:
        """The folder, if it is not there yet, with its config; raises `RunDirectoryError` if it cannot be written."""
        try:
            write_text(self.config, config_yaml)  # first: with it, the folder is a run that can be resumed
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except (OSError, PathError) as error:
            raise RunDirectoryError(
                f"run_dir {self.path}: cannot be written ({reason(error)}). Make room there, or set run_dir=..."
            ) from error

    def _is_work(self, path: Path) -> bool:
        """Whether it is more than a start leaves that was killed, or had no room, before its config was written."""
        if path == self.checkpoints and path.is_dir():
            return any(path.iterdir())
        return path.name != LOCK and not path.name.startswith(f".{self.config.name}.")

    def _check_resumable(
        self, config_yaml: str, resume: bool, free: Collection[str], mappings: Collection[str]
    ) -> None:
        if not resume:
            raise RunDirectoryError(
                f"run_dir {self.path} already holds a run. Add --resume to go on with it, or set run_dir=... for a new "
                "one; nothing is overwritten."
            )
        if not self.config.is_file():
            raise RunDirectoryError(
                f"run_dir {self.path} exists but has no config.yaml, so it is no run to resume. Set run_dir=..."
            )
        found = differences(saved_config(self.config), config_yaml, free)
        if found:
            older = "It was written by a version of exprl that had other options; resume it with that one. "
            raise RunDirectoryError(
                f"run_dir {self.path} was started with another config ({in_words(found)}). "
                f"{older if _other_options(found, mappings) else ''}"
                f"Resume with the same config, or set run_dir=... for a new run. Only {', '.join(free)} may change."
            )
        for path in (self.texts, self.metrics, self.summary):
            if path.exists() and not path.is_file():
                raise RunDirectoryError(f"{path} should be a file that the run wrote, but is not. Move it away.")
        for path in (self.rollouts, self.timeline, self.evaluations, self.checkpoints, self.tensorboard):
            if path.exists() and not path.is_dir():
                raise RunDirectoryError(f"{path} should be a folder of the run, but is not. Move it away.")

    # ------------------------------------------------------------------ what lies in it

    def all_checkpoints(self) -> list[Path]:
        """Complete checkpoints, the oldest first; a file each, or a folder where ranks hold parts of the weights."""
        found: dict[int, Path] = {}
        for path in sorted(self.checkpoints.glob("*")):
            match = CHECKPOINT.fullmatch(path.name)
            if match and not (path.is_file() or path.is_dir()):
                log.warning("%s is neither a file nor a folder: passed over", path)
            elif match:
                found[int(match[1])] = path
            elif path.suffix == CHECKPOINT_SUFFIX:
                log.warning("%s is not named as a checkpoint of a run (step-<number>.ckpt): passed over", path)
        return [found[step] for step in sorted(found)]

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint with the highest step, if there is one."""
        found = self.all_checkpoints()
        return found[-1] if found else None

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after `step` steps lies."""
        return self.checkpoints / f"step-{step:06d}.ckpt"

    def evaluation(self, name: str) -> Path:
        """Where an evaluation's figures and per-problem counts lie."""
        return self.evaluations / f"{name}.json"


def is_run(folder: Path) -> bool:
    """Whether `folder` is the folder of a run."""
    run = RunDirectory(folder)
    return run.config.is_file() and run.checkpoints.is_dir()


def step_of(checkpoint: Path) -> int:
    """The steps done when a run's checkpoint was written, by its name."""
    match = CHECKPOINT.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def saved_config(path: Path) -> str:
    """The text of a `config.yaml` that a run left; raises `RunDirectoryError` where it is damaged."""
    try:
        text = read_text(path, "")
        if isinstance(parse(text), dict):
            return text
        found = "no keys and values"
    except (PathError, ConfigError) as error:
        found = str(error).strip()
    raise RunDirectoryError(f"{path} is damaged ({found}). Restore it, or choose another folder.")


def _is_free(key: str, free: Collection[str]) -> bool:
    """Whether an option, or one that it is a part of, is among the free ones."""
    return any(key == one or key.startswith(f"{one}.") for one in free)


def differences(old: str, new: str, free: Collection[str] = ()) -> list[str]:
    """Where two configs differ, as `key: old -> new`, apart from the keys in `free`.

    >>> differences("{seed: 0, trainer: {max_steps: 1}}", "{seed: 1, trainer: {max_steps: 2}}", ["trainer.max_steps"])
    ['seed: 0 -> 1']
    """
    before, after = (flat(parse(text)) for text in (old, new))
    return [
        f"{key}: {before.get(key, _NOTHING)} -> {after.get(key, _NOTHING)}"
        for key in {**before, **after}
        if before.get(key) != after.get(key) and not _is_free(key, free)
    ]


def in_words(found: Sequence[str]) -> str:
    """`differences` on one line: first those of components' names, each in place of all that differs within it.

    >>> in_words(["seed: 0 -> 1", "objective.clip: 0.2 -> (nothing)", "objective.name: clipped -> gspo"])
    'objective.name: clipped -> gspo (and 1 option of it); seed: 0 -> 1'
    """
    keys = {line: line.split(":", 1)[0] for line in found}
    named = {key.removesuffix("name"): line for line, key in keys.items() if key.endswith(".name")}
    outer = tuple(above for above in named if sum(above.startswith(other) for other in named) == 1)
    within = {above: sum(key.startswith(above) for key in keys.values()) - 1 for above in outer}
    of_it = {above: f" (and {counted(count, 'option')} of it)" if count else "" for above, count in within.items()}
    names = [named[above] + more for above, more in of_it.items()]
    return "; ".join([*names, *(line for line, key in keys.items() if not key.startswith(outer))])


def _other_options(found: Sequence[str], mappings: Collection[str]) -> bool:
    """Whether `differences` are of options that only one side has, though all components are the same."""
    keys = {difference.split(":", 1)[0]: _NOTHING in difference for difference in found}
    missing = [key for key, is_missing in keys.items() if is_missing]
    chosen = [key for key in missing if any(f"{key}.".startswith(f"{mapping}.") for mapping in mappings)]
    return len(missing) > len(chosen) and not any(key.endswith(".name") for key in keys)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and what is above it; afterwards those go again that were not there before and are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # something is in it, or somebody else was here
            for path in missing:
                path.rmdir()
