"""What a chat template writes around the messages, found out by rendering marks instead of texts.

No text from outside goes through a template, so none can be stripped, escaped, cut or read by it: a template is asked
once where each message stands, and the texts are put there unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from exprl.errors import ModelError, one_line
from exprl.text.encoding import Part, encoder_of
from exprl.text.rendering import OutOfBoundsError, render
from exprl.text.thinking import CLOSES, OPENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["system", "user", "assistant"]

NO_THINKING: Mapping[str, Any] = {"enable_thinking": False, "thinking": False}
"""The switches of templates that can think: Qwen3, GLM 4.5 and SmolLM3 know the first, DeepSeek V3.1 the second."""

_TODAY = datetime(2024, 7, 26)
_DIRECTIVES = "".join(f" | replace('%{code}', '{_TODAY.strftime(f'%{code}')}')" for code in "aAbBdeHIjmMpSyY")
DATED = "{%- macro strftime_now(format) -%}{{ format" + _DIRECTIVES + " }}{%- endmacro +%}"
"""Before a template that asks for the date, it gives that of Llama 3: a prompt is the same every day.

A macro, since transformers passes no functions to a template from 5.24 on.
"""


class TemplateError(ModelError):
    """A chat template cannot be used for the messages it is given."""


@dataclass(frozen=True, kw_only=True)
class ChatFrame:
    """The template's text around the messages.

    Attributes:
        before: what comes before each message, in order.
        after: what follows the last one, up to where the reply begins.
        answer: the same for a reply that does not think first; None if the template has no place for one.
    """

    before: tuple[str, ...]
    after: str
    answer: str | None

    @property
    def opening(self) -> str:
        """The beginning of the reply that the prompt already holds: thinking that it opens and leaves open, or ""."""
        return _open_thinking(self.after)

    def parts(self, *messages: str) -> list[Part]:
        """The whole prompt, the messages being plain text."""
        around = [Part(text, template=True) for text in self.before]
        inside = [part for pair in zip(around, map(Part, messages), strict=True) for part in pair]
        return [*inside, Part(self.after, template=True)]


def chat_frame(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    system: bool = False,
    switches: Mapping[str, Any] | None = None,
    advice: Mapping[Role, str] | None = None,
) -> ChatFrame:
    """What the tokenizer's chat template writes around a user message, and a system message before it.

    Args:
        tokenizer: with the template.
        name: of what the template belongs to, for messages.
        system: whether there is a system message.
        switches: variables that the template may know.
        advice: what else its user can do where the template has no place for a message, or perhaps wants one.

    Raises:
        ModelError: it runs on, or writes more than anybody reads (`exprl.text.rendering`).
        TemplateError: it fails on these messages, loses one of them or repeats it, or a reply would begin elsewhere
            than where the template puts one.
    """
    failures: list[TemplateError] = []
    for as_parts in (False, True):  # some templates read a content only as a list of parts
        template = _Template(tokenizer, name, as_parts=as_parts, variables=switches or {}, advice=advice or {})
        try:
            return template.frame(("system", "user") if system else ("user",))
        except TemplateError as error:
            failures.append(error)
    raise failures[0]


_REPLY_ENDS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, int | None]] = WeakKeyDictionary()


def reply_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token with which the chat template ends a written reply; None if it writes none there.

    It need not be the tokenizer's end-of-sequence token: base models keep that of a text (Qwen2.5's `<|endoftext|>`),
    and Gemma's and Phi's templates end a turn with a token of its own.
    """
    template = tokenizer.chat_template
    known = _REPLY_ENDS.get(tokenizer)
    if known is None or known[0] != template:
        known = (template, _find_reply_end(tokenizer) if template else None)
        _REPLY_ENDS[tokenizer] = known
    return known[1]


def _find_reply_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    for as_parts in (False, True):
        try:
            after = _Template(tokenizer, "the tokenizer", as_parts=as_parts, variables={}, advice={}).after_reply()
        except TemplateError:
            continue
        ids = encoder_of(tokenizer).encode([Part(after.lstrip(), template=True)])
        token = tokenizer.added_tokens_decoder.get(ids[0]) if ids else None
        return ids[0] if token is not None and token.special else None
    return None


class _Template:
    """A chat template that is rendered with one mark a message."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        *,
        as_parts: bool,
        variables: Mapping[str, Any],
        advice: Mapping[Role, str],
    ) -> None:
        self._tokenizer, self._name, self._advice = tokenizer, name, advice
        self._as_parts = as_parts
        self._variables = variables
        # private-use characters: no template changes them, by case, by escapes or by what it cuts off
        unused = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in str(tokenizer.chat_template))
        roles: tuple[Role, ...] = ("system", "user", "assistant")
        self._marks = dict(zip(roles, islice(unused, 3), strict=True))

    def frame(self, roles: tuple[Role, ...]) -> ChatFrame:
        *before, after = self._around(roles, generation=True)
        prompted = after != self._around(roles)[-1]
        self._check_first(roles, after)
        reply = self._reply(roles)
        if reply is not None and not _one_begins(after.rstrip(), reply.rstrip()):
            raise self._fault(f"begins a reply after {after!r}, but puts one after {reply!r}")
        if not prompted:
            after = self._prompt_of(after, reply)
        return ChatFrame(before=tuple(before), after=after, answer=_answer(after, reply))

    def after_reply(self) -> str:
        """What follows a written reply to a user message."""
        return self._around(("user", "assistant"))[-1]

    def _prompt_of(self, after: str, reply: str | None) -> str:
        """Where a reply begins, of a template that ignores `add_generation_prompt`: where it puts a written one."""
        if reply is None:
            raise self._fault("has no generation prompt, so that a reply has no place to begin at")
        header = _without_thinking(reply)
        return header.rstrip(" ") if header.strip() != after.strip() else after

    def _check_first(self, roles: tuple[Role, ...], after: str) -> None:
        """A user message alone must be taken for one: what follows it is the same after a system message."""
        if "system" in roles:
            return
        try:
            with_system = self._around(("system", *roles), generation=True)[-1]
        except TemplateError:
            return  # it knows no system message
        if with_system != after:
            raise self._fault("takes the first message for the system message", "user")

    def _reply(self, roles: tuple[Role, ...]) -> str | None:
        """What stands between the last message and a written reply; None if the template cannot render one."""
        try:
            return self._around((*roles, "assistant"))[-2]
        except TemplateError:
            return None

    def _around(self, roles: tuple[Role, ...], *, generation: bool = False) -> list[str]:
        """The template's text around the messages: one more than there are messages."""
        text = self._render(roles, generation=generation)
        around = []
        for role in roles:
            if (found := text.count(self._marks[role])) > 1:
                raise self._fault(f"puts the {role} message into the prompt {found} times", role)
            before, mark, text = text.partition(self._marks[role])
            if not mark:
                raise self._fault(f"leaves the {role} message out of the prompt", role)
            around.append(before)
        return [*around, text]

    def _render(self, roles: Sequence[Role], *, generation: bool) -> str:
        messages = [{"role": role, "content": self._content(role)} for role in roles]
        try:
            template = DATED + self._tokenizer.get_chat_template()
            return render(self._tokenizer, template, messages, generation=generation, variables=self._variables)
        except OutOfBoundsError as error:  # no `TemplateError`: other messages would take as long
            raise ModelError(str(self._fault(str(error)))) from error
        except Exception as error:  # a template is a program, it can raise anything
            raise self._fault(f"fails: {one_line(error)}", roles[0]) from error

    def _content(self, role: Role) -> Any:
        mark = self._marks[role]
        return [{"type": "text", "text": mark}] if self._as_parts else mark

    def _fault(self, what: str, role: Role | None = None) -> TemplateError:
        hint = self._advice.get(role, "") if role is not None else ""
        return TemplateError(
            f"the chat template of {self._name} {what}. {f'{hint} Or set' if hint else 'Set'} model.chat_template to a "
            "template that puts every message once before the reply, or choose another model."
        )


def _one_begins(first: str, second: str) -> bool:
    return first.startswith(second) or second.startswith(first)


def _answer(after: str, reply: str | None) -> str | None:
    """Where a reply begins that does not think: where the template puts a written one, or where it asks for one."""
    if reply is not None and reply.startswith(after.rstrip()) and reply.strip() != after.strip():
        return None if _open_thinking(reply) else reply
    return None if _open_thinking(after) else after


def _open_thinking(text: str) -> str:
    opened = list(OPENS.finditer(text))
    return text[opened[-1].start() :] if opened and not CLOSES.search(text, opened[-1].end()) else ""


def _without_thinking(text: str) -> str:
    """A reply's beginning without thinking that is opened, and perhaps closed again, at its end."""
    found = [match.start() for match in OPENS.finditer(text)]
    if not found:
        return text
    closed = CLOSES.search(text, found[-1])
    rest = text[closed.end() :] if closed else ""
    return text if rest.strip() else text[: found[-1]]
