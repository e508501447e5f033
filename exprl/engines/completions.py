"""What an OpenAI-compatible server answers, checked whole before anything reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from exprl.invariants import ROUNDING


class MalformedAnswerError(ValueError):
    """An answer that is no completion; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One completion of T tokens.

    Attributes:
        text: what was written.
        finish_reason: why it ended, `stop` where the model itself ended it; empty: the server does not say.
        token_ids: T ids, where they were asked for and the server gives them.
        token_logprobs: T log-probs of these, where asked for.
        top_logprobs: for each position the log-probs of the likeliest tokens by name, where asked for.
        prompt_logprobs: for each token of the prompt but the first log-probs by token id, its own among them, where
            they were asked for and the server (vLLM's) gives them.
    """

    text: str
    finish_reason: str = ""
    token_ids: tuple[int, ...] | None = None
    token_logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[Mapping[str, float], ...] | None = None
    prompt_logprobs: tuple[Mapping[int, float], ...] | None = None


def read_completion(body: bytes) -> Completion:
    """The one completion in the JSON `body` of a reply to `/completions`.

    Raises:
        MalformedAnswerError: anything else: broken or deeply nested JSON, other than one choice, a field of another
            type, a log-prob that is no finite number or lies above 0.
    """
    answer = _mapping(_json(body), "the answer")
    choices = _list(answer.get("choices"), "choices")
    if len(choices) != 1:
        raise MalformedAnswerError(f"choices: expected one, but got {len(choices)}")
    choice = _mapping(choices[0], "choices[0]")
    logprobs = _mapping({} if choice.get("logprobs") is None else choice["logprobs"], "logprobs")
    ids, own, top = choice.get("token_ids"), logprobs.get("token_logprobs"), logprobs.get("top_logprobs")
    prompt = choice.get("prompt_logprobs")
    return Completion(
        text=_text(choice.get("text"), "text"),
        finish_reason="" if choice.get("finish_reason") is None else _text(choice["finish_reason"], "finish_reason"),
        token_ids=None if ids is None else tuple(_token(item) for item in _list(ids, "token_ids")),
        token_logprobs=None if own is None else tuple(_logprob(item) for item in _list(own, "token_logprobs")),
        top_logprobs=None if top is None else tuple(_position(item) for item in _list(top, "top_logprobs")),
        prompt_logprobs=None if prompt is None else tuple(map(_of_prompt, _list(prompt, "prompt_logprobs")[1:])),
    )


def error_message(body: bytes) -> str:
    """What a server says went wrong: the message of an OpenAI-style error, else the beginning of the body.

    >>> error_message(b'{"detail": "Not Found"}')
    'Not Found'
    """
    try:
        answer = _json(body)
    except MalformedAnswerError:
        return _shown(body.decode("utf-8", "replace"))
    error = answer.get("error", answer.get("detail", answer)) if isinstance(answer, dict) else answer
    return _shown(error.get("message", error) if isinstance(error, dict) else error)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, an integer of thousands of digits
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise MalformedAnswerError(f"no JSON ({reason}): {_shown(body[:400].decode('utf-8', 'replace'))}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _position(value: Any) -> Mapping[str, float]:
    return {name: _logprob(item) for name, item in _mapping(value, "top_logprobs").items()}


def _of_prompt(value: Any) -> Mapping[int, float]:
    """By token id, as vLLM gives it: `{"17": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}}`."""
    position = _mapping(value, "prompt_logprobs")
    try:
        ids = [int(name) for name in position]
    except ValueError:
        raise MalformedAnswerError("prompt_logprobs: expected ids of tokens as names") from None
    values = (_logprob(_mapping(item, "prompt_logprobs").get("logprob")) for item in position.values())
    return dict(zip(map(_token, ids), values, strict=True))


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value > ROUNDING:
        raise MalformedAnswerError(f"a log-prob must be a finite number of at most 0, but got {_shown(value)}")
    return min(float(value), 0.0)


def _token(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise MalformedAnswerError(f"token_ids: expected ids, but got {_shown(value)}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise MalformedAnswerError(f"{name}: expected a string, but got {_shown(value)}")
    return value.encode("utf-8", "replace").decode("utf-8")  # JSON can spell half a character, which no file can hold


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise MalformedAnswerError(f"{name}: expected a list, but got {_shown(value)}")
    return value


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MalformedAnswerError(f"{name}: expected an object, but got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A short piece of what was given, on one line."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = value if isinstance(value, str) else repr(value)
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return line if len(line) <= 200 else f"{line[:200]}…"
