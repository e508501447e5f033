"""What a model says, apart from what it only thinks."""

from __future__ import annotations

import re

_NAMES = "think|thinking|thought|reasoning"

OPENS = re.compile(
    rf"<\|?(?:START_|begin_of_|seed:)?(?:{_NAMES})\|?>|\[THINK\]|\u25c1think\u25b7"
    r"|<unused94>(?:thought)?|<\|channel\|?>(?:analysis|commentary|thought)",
    re.IGNORECASE,
)
"""Where thinking begins: most models' tags, Mistral's, Kimi's, MedGemma's, the channels of gpt-oss and Gemma 4."""

CLOSES = re.compile(
    rf"</(?:seed:)?(?:{_NAMES})>|<\|(?:END_|end_of_)(?:{_NAMES})\|>|\[/THINK\]|\u25c1/think\u25b7"
    r"|<unused95>|<channel\|>|<\|channel\|>final(?:<\|message\|>)?",
    re.IGNORECASE,
)
"""Where thinking ends, in the same order."""

_MARKS = re.compile(rf"(?P<open>{OPENS.pattern})|(?P<close>{CLOSES.pattern})", re.IGNORECASE)


def without_thinking(response: str) -> str | None:
    """What is said outside blocks of thinking; None where one is left open: then nothing has been said yet.

    A close without an opening ends a block that the prompt opened.

    >>> without_thinking("<think>It is 1?</think>It is 2.")
    'It is 2.'
    >>> without_thinking("It is 1?</think>It is 2.")
    'It is 2.'
    """
    said: list[str] = []
    start, thinking = 0, False
    for mark in _MARKS.finditer(response):
        closes = mark["close"] is not None
        if closes and not thinking:
            said.clear()
        elif not closes and not thinking:
            said.append(response[start : mark.start()])
        thinking = not closes
        start = mark.end()
    return None if thinking else "".join([*said, response[start:]])
