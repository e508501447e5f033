"""Responses that somebody else's trainer, or anybody, has written, as rollouts: JSON lines with a prompt and a text."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from exprl.data.fingerprint import digest_of
from exprl.data.jsonl import read_lines
from exprl.data.rows import is_number
from exprl.errors import DataError, such_as
from exprl.invariants import fault_of
from exprl.rollouts.stored import Label, StoredGroup
from exprl.types import FinishReason, Problem, Prompt, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IDS = ("problem_id",)
PROMPTS = ("prompt", "input")
RESPONSES = ("response", "completion", "output")
"""The keys of a line: exprl's own, TRL's, and those of verl's `trainer.rollout_data_dir`. Others are passed over: a
line of verl's also holds the answer, which is no part of a rollout."""
LARGEST = 2**31 - 1
"""Of steps and places."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """A line: which problem, what was written, in which step, and what is known of it."""

    problem: Problem
    prompt: str
    text: str
    step: int = 0
    cut_off: bool = False
    label: Label


def import_rollouts(
    path: Path, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase | None = None
) -> dict[int, tuple[StoredGroup, ...]]:
    """The rollouts of a file of JSON lines, by step.

    A line is `{"problem_id": ..., "response": ...}`, or has a `prompt` and a `completion` (TRL's names; `input` and
    `output`, verl's), by which the problem is the one whose question stands in the prompt. It may have `step`,
    `finish_reason`, and the labels `correct`, `first_error` and `author` (`Label`).

    Args:
        path: the file, plain or gzipped.
        problems: among which those of the file are.
        tokenizer: makes the token ids; None: a token a character, its code point.

    Raises:
        DataError: naming file and line of what is no response, or is to none of the problems.
    """
    attempted = Attempted(problems)
    try:
        rows = [response_of(row, attempted, f"{path}:{line}") for line, row in read_lines(path, source=False)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    if not rows:
        raise DataError(f"{path}: no responses. Give a line of JSON for each.")
    return grouped(rows, tokenizer)


def grouped(
    responses: Iterable[Response], tokenizer: PreTrainedTokenizerBase | None
) -> dict[int, tuple[StoredGroup, ...]]:
    """By step, the responses to one prompt together, in the order in which they come first."""
    by_step: defaultdict[int, dict[tuple[str, str], list[Response]]] = defaultdict(dict)
    for one in responses:
        by_step[one.step].setdefault((one.problem.id, one.prompt), []).append(one)
    return {step: tuple(_group(own, tokenizer) for own in by_step[step].values()) for step in sorted(by_step)}


def response_of(row: Mapping[str, Any], problems: Attempted, where: str) -> Response:
    """A line, understood; raises as `import_rollouts` does."""
    text = _text(row, RESPONSES, where)
    prompt = "" if _first(row, PROMPTS, where) is None else _text(row, PROMPTS, where)
    if _first(row, IDS, where) is not None:
        problem = problems.named(_id(row, where), where)
    elif prompt:
        problem = problems.asked(prompt, where)
    else:
        raise DataError(
            f"{where}: needs {_either(IDS)} or {_either(PROMPTS)}, to say what is answered, but has "
            f"{', '.join(map(repr, row))}."
        )
    return Response(
        problem=problem,
        prompt=prompt,
        text=text,
        step=_value(row, "step", int, 0, where),
        cut_off=_finish_reason(row, where) == "length",
        label=Label(
            correct=_value(row, "correct", bool, None, where),
            first_error=_first_error(row, text, where),
            author=_value(row, "author", str, None, where),
        ),
    )


# ------------------------------------------------------------------ one line


def _first(row: Mapping[str, Any], keys: Sequence[str], where: str) -> str | None:
    found = [key for key in keys if key in row]
    if len(found) > 1:
        raise DataError(f"{where}: has {' and '.join(map(repr, found))}, which mean the same. Keep one of them.")
    return found[0] if found else None


def _id(row: Mapping[str, Any], where: str) -> str:
    """A number is its text, as in a data set."""
    [key] = IDS
    value = row[key]
    if not isinstance(value, str) and not is_number(value):
        raise DataError(f"{where}: {key!r} must be text or a number, but is {type(value).__name__}.")
    return str(value)


def _text(row: Mapping[str, Any], keys: Sequence[str], where: str) -> str:
    """The text under that of the keys that is there; of messages their contents, one after the other."""
    key = _first(row, keys, where)
    if key is None:
        raise DataError(f"{where}: needs {_either(keys)}, but has {', '.join(map(repr, row))}.")
    value = row[key]
    if isinstance(value, list) and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in value):
        value = "\n".join(message["content"] for message in value)
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} must be text or a list of messages, but is {type(value).__name__}.")
    if fault := fault_of(value):
        raise DataError(f"{where}: {key!r} has {fault}. Repair the line.")
    return value


def _finish_reason(row: Mapping[str, Any], where: str) -> FinishReason | None:
    value = row.get("finish_reason")
    if value is not None and value not in get_args(FinishReason):
        allowed = " or ".join(map(json.dumps, get_args(FinishReason)))
        raise DataError(f"{where}: 'finish_reason' must be {allowed} (cut off), but is {json.dumps(value)}.")
    return cast(FinishReason | None, value)


def _first_error(row: Mapping[str, Any], text: str, where: str) -> int | None:
    value: int | None = _value(row, "first_error", int, None, where)
    if value is not None and value >= max(len(text), 1):
        raise DataError(
            f"{where}: 'first_error' must be the number of a character of the response, which has {len(text)}, counted "
            f"from 0, but is {value}."
        )
    return value


def _value(row: Mapping[str, Any], key: str, kind: type, default: Any, where: str) -> Any:
    value = row.get(key)
    if value is None:
        return default
    if type(value) is not kind or (isinstance(value, int) and not 0 <= value <= LARGEST):
        wanted = {bool: "true or false", int: f"a whole number from 0 to {LARGEST}", str: "text"}[kind]
        raise DataError(f"{where}: {key!r} must be {wanted}, but is {json.dumps(value)}.")
    return value


def _either(keys: Sequence[str]) -> str:
    return " or ".join(f'"{key}"' for key in keys)


class Attempted:
    """Among which problems a line's own is looked for."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.by_id = {problem.id: problem for problem in problems}
        self._by_prompt: dict[str, Problem] = {}

    def named(self, name: str, where: str) -> Problem:
        """By its id; raises `DataError`."""
        if name not in self.by_id:
            raise DataError(f"{where}: no problem {name!r} in the config's data. {such_as(name, self.by_id)}")
        return self.by_id[name]

    def asked(self, prompt: str, where: str) -> Problem:
        """That whose question the prompt holds, the longest where one is a part of another; raises `DataError`."""
        if prompt not in self._by_prompt:
            self._by_prompt[prompt] = self._find(prompt, where)
        return self._by_prompt[prompt]

    def _find(self, prompt: str, where: str) -> Problem:
        held = [problem for problem in self.by_id.values() if problem.question.text.strip() in prompt]
        if not held:
            raise DataError(
                f"{where}: no problem of the config's data has a question that stands in this prompt "
                f'({prompt[:80]!r}...). Give the data set that was trained on, or lines with "problem_id".'
            )
        longest = max(held, key=lambda problem: len(problem.question.text))
        if sum(problem.question.text == longest.question.text for problem in held) > 1:
            raise DataError(
                f'{where}: several problems have the question of this prompt. Give lines with "problem_id".'
            )
        return longest


# ------------------------------------------------------------------ a group


def _group(responses: Sequence[Response], tokenizer: PreTrainedTokenizerBase | None) -> StoredGroup:
    problem, text = responses[0].problem, responses[0].prompt
    ids = () if tokenizer is None or not text else tuple(tokenizer(text, add_special_tokens=False).input_ids)
    prompt = Prompt(problem_id=problem.id, text=text, token_ids=ids)
    return StoredGroup(
        question=problem.question,
        domain=problem.domain,
        digest=digest_of(problem),
        rollouts=tuple(_rollout(one, prompt, tokenizer) for one in responses),
        labels=tuple(one.label for one in responses),
    )


def _rollout(response: Response, prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None) -> Rollout:
    return rollout_of(
        response.text,
        prompt,
        tokenizer,
        finish_reason="length" if response.cut_off else "stop",
        policy_version=response.step,
    )


def rollout_of(
    text: str,
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    finish_reason: FinishReason = "stop",
    policy_version: int = 0,
) -> Rollout:
    """A text that nobody sampled as a rollout, log-probs NaN; without a tokenizer a token is a character."""
    ids, ends = _characters(text) if tokenizer is None else _tokens(text, tokenizer)
    return Rollout(
        prompt=prompt,
        token_ids=ids,
        text=text,
        token_ends=ends,
        sampler_logprobs=(float("nan"),) * len(ids),
        finish_reason=finish_reason,
        policy_version=policy_version,
    )


def _characters(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(map(ord, text)), tuple(range(1, len(text) + 1))


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    from exprl.text.encoding import encoder_of  # imports transformers
    from exprl.text.tokenization import decode_with_ends

    ids = tuple(encoder_of(tokenizer).plain(text))
    again, ends = decode_with_ends(tokenizer, ids)
    # A tokenizer that does not give back what it was given would move every cut.
    return (ids, ends) if again == text else _characters(text)
