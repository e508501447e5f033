"""What a model says, apart from what it only thinks."""

from __future__ import annotations

import re

_TAG = re.compile(r"(?i)<(/?)(think|thinking|thought|reasoning)>|\[(/?)(THINK)\]")


def without_thinking(response: str) -> str | None:
    """What is said outside `<think>` blocks; None where one is left open: then nothing has been said yet.

    A close without an opening ends a block that the prompt opened.

    >>> without_thinking("<think>It is 1?</think>It is 2.")
    'It is 2.'
    >>> without_thinking("It is 1?</think>It is 2.")
    'It is 2.'
    """
    said: list[str] = []
    start, thinking = 0, False
    for tag in _TAG.finditer(response):
        closes = bool(tag[1] or tag[3])
        if closes and not thinking:
            said.clear()
        elif not closes and not thinking:
            said.append(response[start : tag.start()])
        thinking = not closes
        start = tag.end()
    return None if thinking else "".join([*said, response[start:]])
