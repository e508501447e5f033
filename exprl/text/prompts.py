"""From a question to the chat-templated prompt the policy reads. Nothing here can receive a reference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from exprl.component import Component, choose, choose_each, option
from exprl.config.ranges import Tokens
from exprl.domains import Routes, Routing
from exprl.errors import ConfigError, DataError, ModelError
from exprl.registry import PROMPTS
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


class Prompting(Component):
    """How a question becomes messages: which template each domain has."""

    registered_family: ClassVar[str] = "prompt"

    @abstractmethod
    def template_of(self, domain: str | None) -> PromptTemplate:
        """That of a domain, or, where the domain is not known, that of all of them.

        Raises:
            DataError: the domain has none, or is not known and they differ.
        """


@PROMPTS.register("template")
class PromptTemplate(Prompting):
    """One template for all. Messages are plain text: nothing in them becomes a control token."""

    system: str | None = option(default=None, help="system message; null: none, or the chat template's own")
    template: str = option(
        default=PLACEHOLDER, help="user message; {question} is replaced, every other brace stays as it is"
    )
    max_prompt_tokens: Tokens = option(
        default=4096, help="longest prompt in tokens, chat template included (the paper: 4096)"
    )

    @classmethod
    def check_options(cls, config: Any) -> None:
        """The question needs a place."""
        if PLACEHOLDER not in config.template:
            raise ConfigError(
                f"template: {config.template!r} has no {PLACEHOLDER}, so the policy would never see the question. "
                f"Put {PLACEHOLDER} where it belongs."
            )

    def template_of(self, domain: str | None) -> PromptTemplate:
        """This one."""
        del domain
        return self

    def filled(self, text: str) -> str:
        """The user's message with this text for the question."""
        return self.template.replace(PLACEHOLDER, text)

    def messages(self, user: str) -> tuple[str, ...]:
        """The system message, if there is one, and the user's."""
        return (user,) if self.system is None else (self.system, user)


@PROMPTS.register("by_domain")
class ByDomainPrompt(Routing, Prompting):
    """The template of the problem's domain."""

    domains: Mapping[str, Prompting] = choose_each(PROMPTS, help="the prompt of each domain, by the domain's name")
    default: Prompting | None = choose(PROMPTS, default=None, help="that of every other domain; null: there is none")

    def setup(self) -> None:
        """The routes."""
        super().setup()
        self.routes = Routes(self.domains, self.default, "prompt")

    def template_of(self, domain: str | None) -> PromptTemplate:
        """That of its route."""
        if domain is None:
            raise DataError("prompt: the domain of the question must be said: build(problem.question, problem.domain).")
        return self.routes[domain].template_of(domain)


class PromptBuilder:
    """Builds prompts with a tokenizer's chat template.

    Args:
        tokenizer: the policy's.
        prompt: the messages around the question, and the length limit.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Prompting | None = None) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt or PromptTemplate()
        self._frames: dict[bool, ChatFrame] = {}
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path or 'the policy'} has no chat template, so a question cannot "
                "be told from an answer. Set model.chat_template, or choose an instruct model."
            )

    def build(self, question: Question, domain: str | None = None, *, thinking: bool = True) -> Prompt:
        """The prompt that ends where the policy's reply begins; without `thinking`, behind thinking it would open.

        Args:
            question: nothing else of a problem can become part of a prompt.
            domain: the problem's, where prompts differ by it.
            thinking: whether the reply may begin with it.

        Raises:
            TypeError: `question` is anything else, a `Problem` or a `Scaffold` above all.
            ModelError: the chat template refuses these messages (some allow no system message), loses or repeats one,
                or has no place for a reply without the thinking that it opens.
            DataError: the prompt is longer than `max_prompt_tokens`, or the domain has none.
        """
        if type(question) is not Question:
            raise TypeError(
                f"a prompt is built from a Question alone, but got a {type(question).__name__}; what else belongs to "
                "a problem is hidden from the policy. Pass problem.question."
            )
        template = self.prompt.template_of(domain)
        frame = self.frame(template) if thinking else self._closed(template)
        parts = frame.parts(*template.messages(template.filled(question.text)))
        token_ids = encoder_of(self.tokenizer).encode(parts)
        if len(token_ids) > template.max_prompt_tokens:
            raise DataError(
                f"problem {question.problem_id!r}: its prompt has {len(token_ids)} tokens, but max_prompt_tokens is "
                f"{template.max_prompt_tokens}. Drop the row or raise the limit."
            )
        text = "".join(part.text for part in parts)
        return Prompt(problem_id=question.problem_id, text=text, token_ids=token_ids, reply_opening=frame.opening)

    def frame(self, template: PromptTemplate) -> ChatFrame:
        """What the chat template writes around the messages; raises `ModelError` if it cannot be used for them."""
        system = template.system is not None
        if system not in self._frames:
            self._frames[system] = chat_frame(self.tokenizer, "the policy's tokenizer", system=system, advice=_ADVICE)
        return self._frames[system]

    def _closed(self, template: PromptTemplate) -> ChatFrame:
        frame = self.frame(template)
        if not frame.opening:
            return frame
        if frame.answer is None:
            raise ModelError(
                f"the chat template of the policy's tokenizer begins every reply with {frame.opening!r}, so a "
                "given reply without thinking has no place in it. Set model.chat_template to a template that does not."
            )
        return replace(frame, after=frame.answer)
