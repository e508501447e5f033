"""`exprl configs`: what comes with exprl, listed, shown, or copied to be edited."""

from __future__ import annotations

import re
from pathlib import Path

from exprl.config.shipped import located, name_of, shipped
from exprl.errors import ConfigError, PathError, did_you_mean
from exprl.files.disk import local_path, write_text
from exprl.terminal.console import Console

_SENTENCE_END = re.compile(r"[.?!](?=\s)")
_ABBREVIATED = re.compile(r"(\b(Dr|Mrs?|Ms|Prof|St|al|vs|cf|eq|Eq|fig|Fig|[A-Z])|\w\.\w)\.$")
"""Text that ends with a full stop which is no sentence's: after an abbreviation, an initial, and of `e.g.`."""
_NEIGHBOUR = re.compile(r"^(?P<key>extends|experiment): (?P<path>[\w./-]+)", re.MULTILINE)


def show(console: Console) -> None:
    """Every config by its name, with the first sentence of its comment."""
    for name, file in shipped().items():
        console.say((name, "green"), f"  {summary(file.read_text(encoding='utf-8'))}")


def find(name: str) -> Path:
    """The file of a config; raises `ConfigError` where none of that name comes with exprl."""
    names = shipped()
    if name not in names:
        raise ConfigError(f"no config {name!r} comes with exprl. {did_you_mean(name, names)}")
    return names[name]


def copy(name: str, folder: str, console: Console) -> Path:
    """Write a config into `folder`, to be edited; what it extends is named as what comes with exprl, not copied.

    Raises:
        ConfigError: there is no such config.
        PathError: there is a file of its name, or it cannot be written.
    """
    file = find(name)
    target = local_path(folder, "--copy") / file.name
    if target.exists():
        raise PathError(f"--copy: {target} is there already; nothing is overwritten. Give another folder.")
    write_text(target, standing_alone(file))
    console.say(f"{name} -> {target}")
    return target


def summary(text: str) -> str:
    r"""The first sentence of the comment that a file begins with.

    >>> summary("# What is a segment? The policy's\n# own lines.\nseed: 1\n")
    'What is a segment?'
    >>> summary("# Dr. GRPO (Liu et al. 2025), e.g. without a scale. Over any config.")
    'Dr. GRPO (Liu et al. 2025), e.g. without a scale.'
    """
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comment = " ".join(line.lstrip("# ") for line in lines[:end])
    ends = (end.end() for end in _SENTENCE_END.finditer(comment) if not _ABBREVIATED.search(comment, 0, end.end()))
    return comment[: next(ends, None)]


def standing_alone(file: Path) -> str:
    """The text of a shipped file with the names of those that it extends instead of their paths from its folder."""

    def by_name(match: re.Match[str]) -> str:
        return f"{match['key']}: {name_of(located(match['path'], file.parent).resolve())}"

    return _NEIGHBOUR.sub(by_name, file.read_text(encoding="utf-8"))
