"""Judge prompts as token ids, in which text from outside can spell no control token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from exprl.errors import JudgeError, ModelError
from exprl.judges.prompting import JudgePrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]

_MARK = "\ue000"  # a private-use character: stands for a piece from outside while the chat template is applied


class JudgeTokenizer:
    """Tokenises judge prompts with a model's chat template.

    The template and our own instructions become tokens as usual; the pieces from outside are tokenised by themselves,
    with control tokens spelled out as ordinary text. Thinking is switched off in templates that can think.

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
        self._label_frame = lru_cache(maxsize=16)(self._tokenize_label_frame)

    def encode(self, prompt: JudgePrompt) -> list[int]:
        """The ids of a prompt up to where the judge's reply begins."""
        frames = self._frames(_with_marks(prompt))
        return [*_interleave(frames[:-1], self._outside(prompt)), *frames[-1]]

    def encode_for_labels(
        self, prompt: JudgePrompt, reply_start: str, labels: Sequence[str]
    ) -> tuple[list[int], tuple[int, ...]]:
        """The ids up to where a label follows `reply_start` in the reply, and the id of each label there.

        Raises:
            JudgeError: the tokenizer does not write each label as one token of its own.
        """
        marked = _with_marks(prompt)
        last, label_ids = self._label_frame(marked, reply_start, tuple(labels))
        return [*_interleave(self._frames(marked)[:-1], self._outside(prompt)), *last], label_ids

    def _tokenize_frames(self, marked: str) -> tuple[Ids, ...]:
        """The parts of the templated message between the marks; the last ends where the reply begins."""
        return tuple(self._ours(part) for part in self._render(marked).split(_MARK))

    def _tokenize_label_frame(self, marked: str, reply_start: str, labels: tuple[str, ...]) -> tuple[Ids, Ids]:
        """The last part with `reply_start` as all labels continue it: a tokenizer may join a space to the label."""
        last = self._render(marked).rsplit(_MARK, 1)[-1]
        encoded = [self._ours(f"{last}{reply_start}{label}") for label in labels]
        prefix, label_ids = encoded[0][:-1], tuple(ids[-1] for ids in encoded)
        if any(ids[:-1] != prefix for ids in encoded) or len(set(label_ids)) != len(labels):
            raise JudgeError(
                f"the tokenizer of {self._name} does not write each of {', '.join(labels)} as one token, so their "
                "probabilities cannot be read: set scoring=rationale, or choose another judge model."
            )
        return prefix, label_ids

    def _render(self, message: str) -> str:
        rendered = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return str(rendered)

    def _ours(self, text: str) -> Ids:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _outside(self, prompt: JudgePrompt) -> list[Ids]:
        texts = [piece.text for piece in prompt.pieces if not piece.ours]
        return [
            tuple(self._tokenizer(t, add_special_tokens=False, split_special_tokens=True)["input_ids"]) for t in texts
        ]


def _interleave(frames: Sequence[Ids], contents: Sequence[Ids]) -> Iterator[int]:
    for frame, content in zip(frames, contents, strict=True):
        yield from frame
        yield from content


def _with_marks(prompt: JudgePrompt) -> str:
    return "".join(piece.text if piece.ours else _MARK for piece in prompt.pieces)
