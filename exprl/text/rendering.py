"""One rendering of a chat template within bounds: it is a program, written by whoever made the model.

transformers runs it in a sandbox, which keeps it from reading and importing, not from running on or filling the memory.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 10.0
"""Templates take milliseconds."""
LONGEST = 1_000_000
"""Characters around messages of one character each; the longest templates write some thousands."""


class OutOfBoundsError(Exception):
    """What a template does that nobody waits for; completes "the chat template of a model ..."."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    generation: bool,
    variables: Mapping[str, Any],
) -> str:
    """The messages as `template` writes them.

    Args:
        tokenizer: whose special tokens the template may name.
        template: in Jinja.
        messages: each with `role` and `content`.
        generation: whether the beginning of a reply is asked for.
        variables: what else the template may know.

    Raises:
        OutOfBoundsError: it computes powers, takes longer than `SECONDS` (looked at in the main thread alone, which
            gets signals), or writes more than `LONGEST` characters.
        Exception: whatever the template raises.
    """
    if _computes_powers(template):
        raise OutOfBoundsError("computes powers (**), which no message needs and which nothing could interrupt")
    try:
        with time_limit(SECONDS):
            text = str(
                tokenizer.apply_chat_template(
                    list(messages),  # type: ignore[arg-type]
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=generation,
                    **variables,
                )
            )
    except TimeoutError:
        raise OutOfBoundsError(f"takes longer than {SECONDS:g} seconds for a short message") from None
    if len(text) > LONGEST:
        raise OutOfBoundsError(f"writes {len(text):,} characters around a short message, where {LONGEST:,} are allowed")
    return text


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in the block when it takes longer; in other threads than the main one there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _computes_powers(template: str) -> bool:
    from jinja2 import Environment, TemplateSyntaxError

    try:
        return any(kind == "operator" and value == "**" for _, kind, value in Environment().lex(template))
    except TemplateSyntaxError:
        return False  # rendering says where
