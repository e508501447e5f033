"""From a question to the chat-templated prompt the policy reads. Nothing here can receive a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from exprl.component import checked, option
from exprl.config.ranges import Tokens
from exprl.errors import ConfigError, DataError, ModelError
from exprl.text.chat import ChatFrame, Role, chat_frame
from exprl.text.encoding import encoder_of
from exprl.types import Prompt, Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER = "{question}"

_ADVICE: Mapping[Role, str] = {
    "system": "Set prompt.system=null and say it in prompt.template.",
    "user": "If it needs a system message, set prompt.system.",
}


@checked
@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How a question becomes a prompt. Messages are plain text: nothing in them becomes a control token."""

    system: str | None = option(default=None, help="system message; null: none, or the chat template's own")
    template: str = option(
        default=PLACEHOLDER, help="user message; {question} is replaced, every other brace stays as it is"
    )
    max_prompt_tokens: Tokens = option(
        default=4096, help="longest prompt in tokens, chat template included (the paper: 4096)"
    )

    def __post_init__(self) -> None:
        if PLACEHOLDER not in self.template:
            raise ConfigError(
                f"template: {self.template!r} has no {PLACEHOLDER}, so the policy would never see the question. "
                f"Put {PLACEHOLDER} where it belongs."
            )


class PromptBuilder:
    """Builds prompts with a tokenizer's chat template.

    Args:
        tokenizer: the policy's.
        config: the messages around the question, and the length limit.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PromptConfig | None = None) -> None:
        self.tokenizer = tokenizer
        self.config = config or PromptConfig()
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path or 'the policy'} has no chat template, so a question cannot "
                "be told from an answer. Set model.chat_template, or choose an instruct model."
            )

    def build(self, question: Question, *, thinking: bool = True) -> Prompt:
        """The prompt that ends where the policy's reply begins; without `thinking`, behind thinking it would open.

        Raises:
            TypeError: `question` is anything else, a `Problem` or a `Scaffold` above all.
            ModelError: the chat template refuses these messages (some allow no system message), loses or repeats one,
                or has no place for a reply without the thinking that it opens.
            DataError: the prompt is longer than `max_prompt_tokens`.
        """
        if type(question) is not Question:
            raise TypeError(
                f"a prompt is built from a Question alone, but got a {type(question).__name__}; what else belongs to "
                "a problem is hidden from the policy. Pass problem.question."
            )
        frame = self.frame if thinking else self._closed
        parts = frame.parts(*self.messages(self.config.template.replace(PLACEHOLDER, question.text)))
        token_ids = encoder_of(self.tokenizer).encode(parts)
        if len(token_ids) > self.config.max_prompt_tokens:
            raise DataError(
                f"problem {question.problem_id!r}: its prompt has {len(token_ids)} tokens, but max_prompt_tokens is "
                f"{self.config.max_prompt_tokens}. Drop the row or raise the limit."
            )
        text = "".join(part.text for part in parts)
        return Prompt(problem_id=question.problem_id, text=text, token_ids=token_ids, reply_opening=frame.opening)

    def messages(self, user: str) -> tuple[str, ...]:
        """The system message, if there is one, and the user's."""
        return (user,) if self.config.system is None else (self.config.system, user)

    @cached_property
    def frame(self) -> ChatFrame:
        """What the chat template writes around the messages; raises `ModelError` if it cannot be used for them."""
        system = self.config.system is not None
        return chat_frame(self.tokenizer, "the policy's tokenizer", system=system, advice=_ADVICE)

    @cached_property
    def _closed(self) -> ChatFrame:
        if not self.frame.opening:
            return self.frame
        if self.frame.answer is None:
            raise ModelError(
                f"the chat template of the policy's tokenizer begins every reply with {self.frame.opening!r}, so a "
                "given reply without thinking has no place in it. Set model.chat_template to a template that does not."
            )
        return replace(self.frame, after=self.frame.answer)
