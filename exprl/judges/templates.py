"""What a judge is told, by domain: the text files that come with exprl in pairs, or a pair of a user's own."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from exprl.errors import ConfigError, did_you_mean
from exprl.files.disk import local_path
from exprl.judges.prompting import read_prompt

UNAIDED = "_no_reference"
"""Ends the name of the prompt that shows no reference; it lies beside the one that does."""

SLOTS = ("view", "reply", "problem", "reference", "attempt")
"""What a prompt has places for, each once: how much of the attempt is shown, what form the reply has, the texts."""

_SLOT = re.compile(r"\{(\w*)\}")


def template_names() -> list[str]:
    """The prompts that come with exprl, by domain."""
    names = (Path(file.name).stem for file in files("exprl.judges").joinpath("prompts").iterdir())
    return sorted(name.removesuffix(UNAIDED) for name in names if name.endswith(UNAIDED))


def read_template(prompt: str, *, reference: bool) -> str:
    """The text of a judge's prompt.

    Args:
        prompt: a domain of `template_names`, or the path of a text file.
        reference: whether it shows the reference; else the text beside it is read, whose name ends in `_no_reference`.

    Raises:
        ConfigError: there is no such prompt or file, or it has not the places that are filled.
    """
    if prompt in template_names():
        return read_prompt(prompt if reference else f"{prompt}{UNAIDED}")
    path = local_path(prompt, "prompt")
    if not reference:
        path = path.with_name(f"{path.stem}{UNAIDED}{path.suffix}")
    try:
        text = path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(_unread(prompt, path, error, reference=reference)) from error
    _check_slots(text, path, reference=reference)
    return text


def _unread(prompt: str, path: Path, error: Exception, *, reference: bool) -> str:
    if not isinstance(error, FileNotFoundError):
        return f"prompt: {path} cannot be read ({error})."
    if not reference:
        return (
            f"prompt: no file {path}. A judge that is shown no reference is asked by the text beside {prompt!r} whose "
            f"name ends in {UNAIDED}: write it, or choose a prompt that comes with exprl: "
            f"{', '.join(template_names())}."
        )
    return f"prompt: no file {path}, and none of that name comes with exprl. {did_you_mean(prompt, template_names())}"


def _check_slots(text: str, path: Path, *, reference: bool) -> None:
    wanted = [slot for slot in SLOTS if reference or slot != "reference"]
    found = _SLOT.findall(text)
    places = ", ".join(f"{{{slot}}}" for slot in wanted)
    wrong = [f"{{{slot}}}" for slot in wanted if found.count(slot) != 1]
    if wrong:
        raise ConfigError(f"prompt: {path} must have each of {places} once, but not so {', '.join(wrong)}.")
    if unknown := [f"{{{slot}}}" for slot in found if slot not in wanted]:
        raise ConfigError(f"prompt: {path} has {unknown[0]}, but only these are filled: {places}.")
    if found[-1] != "attempt":
        raise ConfigError(f"prompt: {path} must have {{attempt}} last, so that what is before it is read once.")
