"""The errors a user can meet; every message says what was given, what is allowed and what to do."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence


class ExprlError(Exception):
    """Base of every error raised on purpose by exprl; the command line prints it without a traceback."""


class ConfigError(ExprlError, ValueError):
    """An option is wrong, in YAML, an override or code; the message starts with the full key path."""


class DataError(ExprlError):
    """A problem source is missing, empty or has a bad row; the message names file and row."""

    def under(self, key: str) -> DataError:
        """The same where the source's options stand under `key`, so that settings can be given as they are named."""
        del key
        return self


class ColumnError(DataError):
    """A row does not have what the mapping of columns asks for, or what the mapping gives is not enough for a run.

    Args:
        found: what is wrong, naming file, row and column.
        settings: what to set, each as an option of the source: `columns.answer=gold`.
        otherwise: what else can be done, the end of the sentence.
    """

    def __init__(self, found: str, settings: Sequence[str], otherwise: str) -> None:
        self.found, self.settings, self.otherwise = found, tuple(settings), otherwise
        super().__init__(f"{found} Set {' '.join(map(shlex.quote, self.settings))}{otherwise}")

    def under(self, key: str) -> ColumnError:
        """The same with the settings under `key`."""
        return ColumnError(self.found, [f"{key}.{setting}" for setting in self.settings], self.otherwise)


class SeveralErrors(DataError):
    """What several components say of their own problems, one sentence after the other."""

    def __init__(self, errors: Sequence[DataError]) -> None:
        self.errors = tuple(errors)
        super().__init__(" ".join(map(str, errors)))

    def under(self, key: str) -> SeveralErrors:
        """Each of them under `key`."""
        return SeveralErrors([error.under(key) for error in self.errors])


class ModelError(ExprlError):
    """A model or tokenizer cannot be used as asked (missing, no chat template, context too short)."""


class EngineError(ExprlError):
    """The engine that samples cannot go on, or samples from another policy than the trainer's."""


class JudgeError(ExprlError):
    """Judging failed more often than `max_failure_rate` allows, or a judge lacks what it needs."""


class RubricError(JudgeError):
    """A rubric is none, or not to be had; the message says why, and whoever knows the row names it."""


class RewardError(ExprlError):
    """A reward returned what nothing can be learned from; the message names it and the rollout."""


class ExecutionError(ExprlError):
    """A program cannot be judged by running it: no sandbox can be made, or its test program is at fault."""


class ContractError(ExprlError, ValueError):
    """A component gave what its family does not allow; the message names it, the value and what is allowed.

    `giver` is who gave it, such as "judge 'mine'"; empty where that is not known yet.
    """

    def __init__(self, message: str, *, giver: str = "") -> None:
        super().__init__(f"{giver}: {message}" if giver else message)
        self.giver = giver


class PathError(ExprlError):
    """A file or folder cannot be read or written where an option or exprl itself says; the message names it."""


class RunDirectoryError(PathError):
    """The run directory cannot be used without overwriting finished work, or is in use."""


class CheckpointError(ExprlError):
    """A checkpoint cannot be written, read or used with this run."""


class NonFiniteError(ExprlError):
    """A number that training needs is NaN or infinite; the message names it, the step and what to try."""


class OutOfMemoryError(ExprlError):
    """A device has no more memory; the message names what needed it and which option takes less."""


class DistributedError(ExprlError):
    """The ranks of a run cannot go on together; the message names rank and phase."""


class RanksDifferError(DistributedError):
    """Ranks were started with other options, code, packages or data than each other; raised on every rank alike."""


class LostRankError(DistributedError):
    """Another rank is gone without a word; its launcher knows how it ended."""


class PeerError(DistributedError):
    """Another rank failed, and has said why itself."""


def one_line(error: BaseException) -> str:
    r"""What an error says, on one line; its kind, where it says nothing.

    >>> one_line(ValueError("no such\n  layer")), one_line(KeyError())
    ('no such layer', 'KeyError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    r"""An error's kind and the first line of what it says, of others' code, whose messages may be pages.

    >>> first_line(ValueError("no such layer\nof these: 1, 2")), first_line(KeyError())
    ('ValueError: no such layer', 'KeyError')
    """
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0].removesuffix(": ")


LISTED = 40
"""Choices that a message lists: more than any family has components, and no data set's ids."""


def such_as(given: str, ids: Iterable[str]) -> str:
    """A sentence that says what ids there are, of which there may be very many, made by a program.

    >>> such_as("Q-1", ["q-1", "q-2", "q-3"]), such_as("7", ["q-1", "q-2", "q-3"])
    ("Did you mean 'q-1'?", "There are 3, from 'q-1' to 'q-3'.")
    """
    ids = list(ids)
    same = next((one for one in ids if one.strip().casefold() == given.strip().casefold()), None)
    if same is not None:
        return f"Did you mean {same!r}?"
    return f"There are {len(ids)}, from {ids[0]!r} to {ids[-1]!r}." if len(ids) > 1 else f"There is {ids!r} alone."


def did_you_mean(given: str, choices: Iterable[str]) -> str:
    """A sentence that suggests the closest choice and lists all of them, or the first of very many.

    >>> did_you_mean("procces", ["process", "sparse"])
    "Did you mean 'process'? Choose one of: process, sparse."
    """
    choices = sorted(choices)
    close = difflib.get_close_matches(given, choices, n=1, cutoff=0.6)
    suggestion = f"Did you mean {close[0]!r}? " if close else ""
    more = f" and {len(choices) - LISTED} more" if len(choices) > LISTED else ""
    listing = ", ".join(choices[:LISTED]) if choices else "(none)"
    return f"{suggestion}Choose one of: {listing}{more}."
