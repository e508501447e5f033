"""What a judge needs of a language model, whoever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from exprl.judges.prompting import JudgePrompt
from exprl.progress import Advance
from exprl.types import JudgementStatus


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back for one prompt.

    Attributes:
        text: the reply, or what went wrong where `status` is not ok.
        status: ok, or timeout, error, empty.
        probabilities: of each label asked for, where labels were asked for; their sum is at most 1.
    """

    text: str = ""
    status: JudgementStatus = "ok"
    probabilities: tuple[float, ...] = ()


class JudgeBackend(Protocol):
    """Runs a judge's model. Failures of single prompts are replies with a status, never raised."""

    def complete(self, prompts: Sequence[JudgePrompt], max_new_tokens: int, advance: Advance) -> list[Reply]:
        """The greedy reply to each prompt, in order."""

    def label_probabilities(
        self, prompts: Sequence[JudgePrompt], labels: Sequence[str], reply_start: str, advance: Advance
    ) -> list[Reply]:
        """How likely each label is to follow `reply_start` at the beginning of the reply, in one forward pass."""

    def room(self, prompt: JudgePrompt) -> tuple[int, int | None]:
        """The prompt's length in tokens, and the model's context length where it is known."""
