"""What the frozen dataclasses of `exprl.types` refuse to hold, so that nobody who is given one need look again.

A step makes hundreds of them, of tens of segments or thousands of tokens: values are gone through by what C can do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Protocol

from exprl.errors import ContractError


class Span(Protocol):
    """Tokens [start, end)."""

    @property
    def start(self) -> int: ...  # noqa: D102

    @property
    def end(self) -> int: ...  # noqa: D102


# ------------------------------------------------------------------ one number


def likert(score: Any) -> float:
    """A score in [1, 5] as a plain number; raises `ContractError`."""
    if isinstance(score, bool) or not isinstance(score, Real) or not 1.0 <= float(score) <= 5.0:
        raise ContractError(
            f"a Likert score is a number in [1, 5], but got {shown(score)}. Map a scale from low to high with "
            '1 + 4 * (score - low) / (high - low); a judgement that failed has score=None and a status such as "error"'
        )
    return float(score)


def reward(value: Any) -> float | None:
    """A reward in [0, 1] as a plain number, or None where it failed; raises `ContractError`."""
    if value is None:
        return None
    if not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
        advice = ". Scale it into [0, 1]" if isinstance(value, Real) and math.isfinite(value) else _plain(value)
        raise ContractError(f"a reward is a number in [0, 1], or None where it failed, but got {shown(value)}{advice}")
    return float(value)


def advantage(value: Any) -> float:
    """A number that is finite in single precision, as training computes, as a plain one; raises `ContractError`."""
    if not isinstance(value, Real) or not -_LARGEST <= float(value) <= _LARGEST:
        raise ContractError(f"an advantage is a finite number, but got {shown(value)}{_beyond(value)}{_plain(value)}")
    return float(value)


_LARGEST = (2 - 2**-23) * 2.0**127
"""Of single precision."""


def _beyond(value: Any) -> str:
    return ", which is none in single precision" if isinstance(value, Real) and math.isfinite(value) else ""


def tokens(count: Any) -> int:
    """A number of tokens; raises `ContractError`."""
    if not isinstance(count, Integral) or count < 0:
        raise ContractError(f"length: the rollout's number of tokens, but got {shown(count)}")
    return int(count)


def version(steps: Any) -> int:
    """The steps that a policy had been trained for; raises `ContractError`."""
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 0:
        raise ContractError(f"policy_version: the steps the policy had been trained for, but got {shown(steps)}")
    return int(steps)


def _plain(value: Any) -> str:
    """What to do about a scalar of torch, which is no number."""
    is_scalar = callable(getattr(value, "item", None)) and not isinstance(value, Real)
    return ". Give the plain number, value.item()" if is_scalar else ""


# ------------------------------------------------------------------ numbers of tokens


def whole_numbers(name: str, given: Any) -> tuple[int, ...]:
    """A list or tuple of them as a tuple; raises `ContractError`."""
    return _of_kind(name, given, Integral, "whole numbers")


def numbers(name: str, given: Any) -> tuple[float, ...]:
    """A list or tuple of them as a tuple; raises `ContractError`."""
    return _of_kind(name, given, Real, "numbers")


def token_ids(given: Any) -> tuple[int, ...]:
    """A list or tuple of ids as a tuple, each from 0 on and below 2^31; raises `ContractError`."""
    ids = whole_numbers("token_ids", given)
    if ids and not (min(ids) >= 0 and max(ids) < _IDS):
        wrong = next(one for one in ids if not 0 <= one < _IDS)
        raise ContractError(f"token_ids: a token's id is a whole number from 0 to {_IDS - 1}, but one is {wrong}")
    return ids


_IDS = 2**31
"""How many ids there can be: they are kept in 32 bits."""
ROUNDING = 1e-3
"""How far above 0 rounding may lift the log-prob of a certain token."""


def logprobs(given: Any) -> tuple[float, ...]:
    """A list or tuple of numbers as a tuple, none above 0 but by rounding; raises `ContractError`.

    One that is not finite passes: NaN is what nobody knows, and of an engine that gives others `check_sampled` can say
    more.
    """
    found = numbers("sampler_logprobs", given)
    top = max(found, default=0.0)
    if not top <= ROUNDING:  # a NaN in front hides what comes after
        wrong = next((one for one in found if ROUNDING < one < math.inf), None)
        if wrong is not None:
            raise ContractError(f"sampler_logprobs: a log-prob is at most 0, but one is {shown(wrong)}")
    return found


def check_known(found: Sequence[float]) -> None:
    """Raise `ContractError` unless the log-probs of a rollout are all finite, or all NaN: nobody knows them.

    A token of log-prob minus infinity could not have been sampled.
    """
    if math.isfinite(sum(found)) or all(one != one for one in found):
        return
    place, wrong = next(((at, one) for at, one in enumerate(found) if not math.isfinite(one)), (0, None))
    if wrong is None:  # their sum alone is too large a number
        return
    unknown = ". NaN stands for what nobody knows, and then for all of a rollout's tokens" if wrong != wrong else ""
    raise ContractError(
        f"sampler_logprobs: a token that was sampled has a finite log-prob, but that of token {place} is {wrong}"
        f"{unknown}"
    )


def _of_kind(name: str, given: Any, kind: type[Any], called: str) -> tuple[Any, ...]:
    if not isinstance(given, (list, tuple)):
        instead = f". Give tuple({name}.tolist())" if hasattr(given, "tolist") else ""
        raise ContractError(f"{name}: a tuple of {called}, but got {shown(given)}{instead}")
    if not all(issubclass(own, kind) for own in set(map(type, given))):  # few types, many numbers
        wrong = next(one for one in given if not isinstance(one, kind))
        raise ContractError(f"{name}: a tuple of {called}, but one is {shown(wrong)}{_plain(wrong)}")
    return tuple(given)


def check_end(reason: Any, known: Sequence[str]) -> None:
    """Raise `ContractError` where a rollout did not end for a reason that is `known`."""
    if reason not in known:
        raise ContractError(
            f"finish_reason: {' or '.join(map(repr, known))}, but got {reason!r}; 'length' is a rollout that was "
            "cut off"
        )


def check_ends(ends: tuple[int, ...], text: str) -> None:
    """Raise `ContractError` unless tokens that end at these characters make up the text."""
    within = ends[0] >= 0 and ends[-1] == len(text) if ends else not text
    if not within or list(ends) != sorted(ends):
        raise ContractError(
            f"token_ends: where each token's text ends, none before the one before it and the last at {len(text)}, "
            f"where the text ends, but got {shown(ends)}. exprl.decode_with_ends makes them"
        )


# ------------------------------------------------------------------ segments


def contiguous(segments: Sequence[Span], length: int) -> bool:
    """Whether segments follow each other from 0 to `length`."""
    end = 0
    for segment in segments:
        if segment.start != end:
            return False
        end = segment.end
    return end == length


def check_covering(segments: Sequence[Span], values: Sequence[object] | None, of: str) -> None:
    """Raise `ContractError` unless segments follow each other from 0 on with a value each; None: they need none."""
    if not contiguous(segments, segments[-1].end if segments else 0):
        cut = ", ".join(f"[{segment.start}, {segment.end})" for segment in segments)
        raise ContractError(f"{of} need segments that follow each other from 0 on, but got {_short(cut)}")
    if values is not None and len(values) != len(segments):
        raise ContractError(f"{of} need a value for each segment, but got {len(values)} for {len(segments)}")


def each(name: str, given: Any, kind: type[Any] = object) -> tuple[Any, ...]:
    """A list or tuple of `kind` as a tuple; raises `ContractError`."""
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, kind) for one in given):
        of = "" if kind is object else f" of {kind.__name__}"
        raise ContractError(f"{name}: a tuple{of}, but got {shown(given)}")
    return tuple(given)


# ------------------------------------------------------------------ texts


def text(given: Any, name: str = "text") -> str:
    """Text that can be written; raises `ContractError`."""
    if not isinstance(given, str):
        raise ContractError(f"{name}: must be text, but got {shown(given)}")
    if fault := fault_of(given):
        raise ContractError(f"{name}: {fault}")
    return given


def fault_of(text: str) -> str:
    r"""What makes a text none that a tokenizer or a file can take, in words; empty where nothing does.

    >>> fault_of("a\ud800"), fault_of("é")
    ("half of a surrogate pair at character 1 ('\\ud800'), which is no text", '')
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair at character {error.start} ({text[error.start]!a}), which is no text"
    return ""


def rationale(text: Any, longest: int) -> str:
    """A judge's reply, of a longer one beginning and end; raises `ContractError`."""
    if not isinstance(text, str):
        raise ContractError(f"a judgement's rationale is text, but got {shown(text)}")
    if len(text) <= longest:
        return text
    mark = f" [... {len(text) - longest} or more characters left out ...] "
    half = (longest - len(mark)) // 2
    return f"{text[:half]}{mark}{text[-half:]}"


# ------------------------------------------------------------------ in messages


def shown(value: object) -> str:
    """A value in a message, on one line and not longer than a message should be."""
    return f"{_short(' '.join(repr(value).split()))} ({type(value).__name__})"


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."
