"""Folders of graded rollouts: what each was begun with, and that it goes on with nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exprl import config as configuration
from exprl.config.fields import choices_in
from exprl.data.fingerprint import digest_of_all, fingerprint, first_difference
from exprl.errors import DataError, PathError
from exprl.experiment import Experiment
from exprl.files.disk import read_json, write_json, write_text
from exprl.files.lock import LOCK
from exprl.judges.base import Judge
from exprl.runs.contents import problems_of
from exprl.runs.directory import RunDirectory, differences, in_words, is_run, saved_config
from exprl.types import Problem

CONFIG, SOURCE = "config.yaml", "source.json"


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How messages name the option that gave a folder, and what they advise instead of it."""

    option: str = "--output"
    advice: str = "Choose another --output."


OUTPUT = Wording()


def check_apart(folder: Path, source: str, wording: Wording = OUTPUT) -> None:
    """Raise `DataError` where rollouts would be written into a run, or among those that are graded."""
    if is_run(folder):
        what = "a run"
    elif str(folder.resolve()) == source:
        what = "SOURCE itself"
    else:
        return
    raise DataError(
        f"{wording.option}: {folder} is {what}, and graded rollouts need a folder of their own. {wording.advice}"
    )


def claim(
    folder: Path,
    experiment: Experiment,
    source: str,
    *,
    problems: Sequence[Problem] | None = None,
    wording: Wording = OUTPUT,
) -> None:
    """Begin in a folder, or go on there with the same source (`Material.name`) and experiment.

    Args:
        folder: it is there, and locked.
        experiment: what grades.
        source: what is graded.
        problems: all that a judge may be given; None: nobody is asked.
        wording: for messages.

    Raises:
        DataError: it is a run, or holds something else; or a judge that reads all problems graded some of it by others.
        PathError: what it was begun with cannot be read.
    """
    check_apart(folder, source, wording)
    text = configuration.to_yaml(experiment)
    all_problems = None if problems is None else digest_of_all(problems)
    if not (folder / CONFIG).is_file():
        _begin(folder, source, all_problems, text, wording)
        return
    before, saved = begun_with(folder, wording.advice)
    found = differences(saved_config(folder / CONFIG), text, configuration.free_keys(experiment))
    if before != source:
        found.insert(0, f"SOURCE: {before} -> {source}")
    if found:
        raise DataError(
            f"{wording.option}: {folder} was begun with another source or experiment ({in_words(found)}). "
            f"{wording.advice}"
        )
    judge = reads_all(experiment)
    if judge is not None and problems is not None and saved not in (None, *_forms(problems)):
        raise DataError(
            f"{wording.option}: {folder} was begun with other problems, and judge {judge!r} takes what it shows from "
            f"all of them, whether they were attempted or not. Give the data set as it was then. Or else: "
            f"{wording.advice}"
        )


def _begin(folder: Path, source: str, problems: str | None, config: str, wording: Wording) -> None:
    """Also where a kill or a full disk left some of these files, and nothing else."""
    held = [path for path in folder.iterdir() if path.name != LOCK]
    drafts = [path for path in held if path.name.startswith((f".{SOURCE}.", f".{CONFIG}."))]
    others = [path for path in held if path not in drafts]
    if others and not (others == [folder / SOURCE] and _is_source(others[0], source)):
        raise DataError(
            f"{wording.option}: {folder} already holds something. Give a new folder; nothing is overwritten."
        )
    for draft in drafts:
        draft.unlink(missing_ok=True)
    write_json(folder / SOURCE, {"source": source, **({} if problems is None else {"problems": problems})})
    write_text(folder / CONFIG, config)  # last: with it, the folder can be gone on with


def _is_source(file: Path, source: str) -> bool:
    try:
        return bool(read_json(file, "").get("source") == source)
    except PathError:
        return False


def begun_with(folder: Path, advice: str) -> tuple[str, str | None]:
    """The source that a folder was begun with, and the digest of its problems if it says; raises `PathError`."""
    file = folder / SOURCE
    node = read_json(file, advice)
    source, problems = node.get("source"), node.get("problems")
    if not isinstance(source, str) or not isinstance(problems, str | None):
        raise PathError(f'{file} is damaged: it does not say what was graded ({{"source": PATH}}). {advice}')
    return source, problems


# ------------------------------------------------------------------ all problems, whether attempted or not


def reads_all(experiment: Experiment) -> str | None:
    """The name of a judge for which all problems of the run count, if the reward has one."""
    named = (choice.name for _, choice in choices_in(experiment.reward, "reward") if _is_reader(choice.cls))
    return next(named, None)


def _is_reader(component: type) -> bool:
    return issubclass(component, Judge) and component.reads_all_problems


def check_all(source: str, experiment: Experiment, problems: Sequence[Problem]) -> None:
    """Raise `DataError` where a judge reads all problems, and these are not those that the rollouts were made with.

    Nothing is known of rollouts of a file, of a run without checkpoints, and of a folder that an earlier exprl wrote.
    """
    judge = reads_all(experiment)
    changed = None if judge is None else _changed(Path(source), problems)
    if changed is not None:
        raise DataError(
            f"{source}: the problems are not those that its rollouts were made with: {changed}. Judge {judge!r} takes "
            "what it shows from all of them, whether they were attempted or not, so it would show others than then. "
            "Give the data set as it was then, with the same seed and leak options."
        )


def _changed(source: Path, problems: Sequence[Problem]) -> str | None:
    """What differs in all problems, in words; None where nothing does, or nobody knows."""
    if is_run(source):
        saved = problems_of(RunDirectory(source))
        if saved is None:
            return None
        bare = [problem.without_reference() for problem in problems]  # as a run that reads no references has them
        found = [first_difference(saved, fingerprint(form)) for form in (problems, bare)]
        return None if None in found else found[0]
    if (source / SOURCE).is_file():
        _, digest = begun_with(source, "Give other rollouts.")
        return None if digest in (None, *_forms(problems)) else "some are others, or in another order"
    return None


def _forms(problems: Sequence[Problem]) -> tuple[str, str]:
    return digest_of_all(problems), digest_of_all([problem.without_reference() for problem in problems])
