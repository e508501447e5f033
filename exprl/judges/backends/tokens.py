"""Judge prompts as token ids, in which no message can spell a control token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from exprl.errors import JudgeError, ModelError
from exprl.judges.prefixes import Parts, Prefix
from exprl.judges.prompting import JudgePrompt
from exprl.text.chat import NO_THINKING, ChatFrame, chat_frame
from exprl.text.encoding import Ids, Part, encoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class JudgeTokenizer:
    """Tokenises judge prompts with a model's chat template, whose own text alone makes control tokens.

    Each piece from outside is tokenised by itself, and of a text whose prefixes are asked about each part, once: the
    ids of a prefix are those of its parts, and the ids of a longer one begin with all of them. They are those that the
    prefix has as a whole, but where a part ends within what the tokenizer keeps together, or cuts by what follows:
    there the token ends with the part, in the longer prefixes too.

    Thinking is switched off in templates that have a switch for it.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        if not tokenizer.chat_template:
            raise ModelError(f"{name} has no chat template, so it cannot judge: set chat_template, or choose another.")
        self._tokenizer = tokenizer
        self._name = name
        # a judge has a handful of templates, whatever the number of prompts
        self._frames = lru_cache(maxsize=16)(self._tokenize_frames)
        self._end = lru_cache(maxsize=16)(self._tokenize_end)
        self._label_end = lru_cache(maxsize=16)(self._tokenize_label_end)
        # and the prompts about one problem, and about the prefixes of one text, follow each other
        self._plain = lru_cache(maxsize=64)(self._tokenize_plain)
        self._parts = lru_cache(maxsize=4)(self._tokenize_parts)

    def encode(self, prompt: JudgePrompt, *, thinking: bool = True) -> list[int]:
        """The ids of a prompt up to where the judge's reply begins; without `thinking`, where its answer begins.

        Raises:
            ModelError: the chat template loses the message, or fails.
            JudgeError: the template makes the model think, where it must not.
        """
        ours = _ours(prompt)
        after = self._chat.after if thinking else self._answer()
        return [*self._up_to_last(prompt, ours), *self._end(ours, after)]

    def encode_for_labels(
        self, prompt: JudgePrompt, reply_start: str, labels: Sequence[str]
    ) -> tuple[list[int], tuple[int, ...]]:
        """The ids up to where a label follows `reply_start` in the answer, and the id of each label there.

        Raises:
            ModelError: the chat template loses the message, or fails.
            JudgeError: the tokenizer does not write each label as one token of its own, or the template makes the model
                think first.
        """
        ours = _ours(prompt)
        end, label_ids = self._label_end(ours, reply_start, tuple(labels))
        return [*self._up_to_last(prompt, ours), *end], label_ids

    @property
    def reply_opening(self) -> str:
        """What of a reply the prompt already holds: the tag of a template that begins it with thinking."""
        return self._chat.opening

    @property
    def template(self) -> str:
        """The chat template's source."""
        return str(self._tokenizer.chat_template)

    @cached_property
    def _chat(self) -> ChatFrame:
        return chat_frame(self._tokenizer, self._name, switches=NO_THINKING)

    def _answer(self) -> str:
        if self._chat.answer is None:
            raise JudgeError(
                f"the chat template of {self._name} makes a reply begin with thinking ({self._chat.opening!r}) and has "
                "no switch to leave it out, so a score cannot be read at once: set scoring=rationale without "
                "constrained, or choose another judge model or model.chat_template."
            )
        return self._chat.answer

    def _up_to_last(self, prompt: JudgePrompt, ours: tuple[str, ...]) -> list[int]:
        """All but what follows the last piece from outside."""
        ids = list[int]()
        outside = [piece for piece in prompt.pieces if not piece.ours]
        for frame, piece in zip(self._frames(ours), outside, strict=True):
            ids += frame
            after = ids[-1] if ids else None
            ids += self._prefix(piece, after) if isinstance(piece, Prefix) else self._plain(piece.text, after)
        return ids

    def _prefix(self, prefix: Prefix, after: int | None) -> Ids:
        if not encoder_of(self._tokenizer).divides:
            return self._plain(prefix.text, after)
        ids, ends = self._parts(prefix.whole, after)
        return ids[: ends[prefix.count]]

    def _tokenize_parts(self, parts: Parts, after: int | None) -> tuple[Ids, list[int]]:
        """The ids of the parts one after the other, and how many are those of the first 0, 1, ... of them."""
        encoder, ids, ends = encoder_of(self._tokenizer), list[int](), [0]
        for part in parts.parts:
            ids += encoder.plain(part, ids[-1] if ids else after)
            ends.append(len(ids))
        return tuple(ids), ends

    def _tokenize_plain(self, text: str, after: int | None) -> Ids:
        return encoder_of(self._tokenizer).plain(text, after)

    def _tokenize_frames(self, ours: tuple[str, ...]) -> tuple[Ids, ...]:
        """What stands before each piece from outside."""
        encoder, frames = encoder_of(self._tokenizer), list[Ids]()
        for text in ours[:-1]:
            before = [] if frames else [Part(self._chat.before[0], template=True)]
            frames.append(encoder.encode([*before, Part(text)], _INSIDE if frames else None))
        return tuple(frames)

    def _tokenize_end(self, ours: tuple[str, ...], after: str) -> Ids:
        """What follows the last piece from outside."""
        return self._encode_end(ours, after, "")

    def _tokenize_label_end(self, ours: tuple[str, ...], reply_start: str, labels: tuple[str, ...]) -> tuple[Ids, Ids]:
        """The same with `reply_start` as all labels continue it: a tokenizer may join a space to the label."""
        encoded = [self._encode_end(ours, self._answer(), f"{reply_start}{label}") for label in labels]
        prefix, label_ids = encoded[0][:-1], tuple(ids[-1] for ids in encoded)
        if any(ids[:-1] != prefix for ids in encoded) or len(set(label_ids)) != len(labels):
            raise JudgeError(
                f"the tokenizer of {self._name} does not write each of {', '.join(labels)} as one token, so their "
                "probabilities cannot be read: choose another judge model, or a judge that writes its verdict "
                "(scoring=rationale)."
            )
        return prefix, label_ids

    def _encode_end(self, ours: tuple[str, ...], after: str, reply: str) -> Ids:
        before = [] if len(ours) > 1 else [Part(self._chat.before[0], template=True)]
        parts = [*before, Part(ours[-1]), Part(after, template=True), Part(reply)]
        return encoder_of(self._tokenizer).encode(parts, None if before else _INSIDE)


_INSIDE = -1
"""Stands for the id before a frame that follows a text: no control token."""


def _ours(prompt: JudgePrompt) -> tuple[str, ...]:
    """Our own text before, between and after the pieces from outside: one more than those are."""
    texts = [""]
    for piece in prompt.pieces:
        if piece.ours:
            texts[-1] += piece.text
        else:
            texts.append("")
    return tuple(texts)
