"""From text to token ids, where only a chat template's own text can write control tokens.

`split_special_tokens=True` of transformers is not enough: added tokens that are not marked special (`<think>`,
`<tool_call>`) still match, and a Unigram model holds `</s>` as a piece that plain text can spell. So text is encoded by
a copy of the tokenizer in which every control token has a name that no text can spell, at the same id.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from exprl.errors import DataError, ModelError
from exprl.invariants import fault_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Ids = tuple[int, ...]
_Place = Literal["start", "after_control", "inside"]


@dataclass(frozen=True)
class Part:
    """A part of a text; only in a `template`'s part does what spells a control token become one."""

    text: str
    template: bool = False


class TextEncoder(ABC):
    """Encodes texts made of parts."""

    @property
    @abstractmethod
    def divides(self) -> bool:
        """Whether the ids of a text's parts, one after the other, say the text: no part gains or loses a space."""

    @abstractmethod
    def encode(self, parts: Iterable[Part], after: int | None = None) -> Ids:
        """The ids of the parts' whole text; `after` is the id before it, None at the beginning of a sequence.

        Neighbouring text is encoded as one, as transformers would, so that harmless text has the ids it always has.

        Raises:
            ModelError: the tokenizer writes a control token for plain text.
            DataError: a text holds half of a surrogate pair.
        """

    def plain(self, text: str, after: int | None = None) -> Ids:
        """The ids of a text that is no template's."""
        return self.encode([Part(text)], after)


_ENCODERS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, TextEncoder]] = WeakKeyDictionary()


def encoder_of(tokenizer: PreTrainedTokenizerBase) -> TextEncoder:
    """The encoder of a Hugging Face tokenizer, made once for as long as it lives."""
    size = len(tokenizer)  # tokens added later are control tokens, too
    known = _ENCODERS.get(tokenizer)
    if known is not None and known[0] == size:
        return known[1]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _SlowEncoder(tokenizer)
    encoder = _FastEncoder(backend, ends={tokenizer.bos_token, tokenizer.eos_token})
    _ENCODERS[tokenizer] = size, encoder
    return encoder


def _is_control(content: str, *, special: bool) -> bool:
    """Whether an added token is more than text.

    Some tokenizers add runs of white space only to write code in fewer tokens, and a single character may have no
    other way to be written. Bytes (`<0xE2>`) are what byte fallback spells all other text with.
    """
    if len(content) == 1 or _BYTE.fullmatch(content):
        return False
    return special or not content.replace("\u2581", " ").isspace()


_BYTE = re.compile("<0x[0-9A-F]{2}>")


def _refuse(ids: Iterable[int], controls: Iterable[int]) -> None:
    if not frozenset(controls).isdisjoint(ids):
        raise ModelError(
            "model: the tokenizer writes one of its control tokens for plain text, so text from outside could steer "
            "the model. Choose a model whose tokenizer is a fast one (tokenizer.json)."
        )


def _check_text(text: str) -> None:
    """Raise `DataError` for text that no tokenizer takes; nothing of it is shown, it may be a reference."""
    if fault := fault_of(text):
        raise DataError(f"a text of {len(text)} characters, which a model was to read, has {fault}. Repair its source.")


class _FastEncoder(TextEncoder):
    """With copies of a `tokenizers` tokenizer; the original is not held, the cache would keep it alive."""

    def __init__(self, backend: Tokenizer, ends: Collection[str | None]) -> None:
        state = json.loads(backend.to_str())
        state |= {"truncation": None, "padding": None, "post_processor": None}
        unknown = _unknown_token(state["model"])
        if state["model"].get("type") == "BPE" and unknown in ends:  # then what is unknown is left out
            state["model"]["unk_token"] = unknown = None
        added = backend.get_added_tokens_decoder().items()
        controls = {i: t.content for i, t in added if _is_control(t.content, special=t.special)}
        self._whole = _load(state)
        self._controls = frozenset(controls)
        self._never = frozenset(i for i, content in controls.items() if content != unknown)
        self._unknown = None if unknown is None else backend.token_to_id(unknown)
        self._warned = False
        self._plain = _PlainCopies(state, controls.values())

    @cached_property
    def divides(self) -> bool:
        """Where white space at either end of a text is kept: what strips it joins the words of neighbouring parts."""

        def ids(text: str) -> list[int]:
            return list(self._plain["inside"].encode(text, add_special_tokens=False).ids)

        return all(ids(space + "1") != ids("1") != ids("1" + space) for space in (" ", "\n"))

    def encode(self, parts: Iterable[Part], after: int | None = None) -> Ids:
        """See `TextEncoder`."""
        ids: list[int] = []
        text = ""
        for piece, control in self._pieces(parts):
            text += piece
            if control is not None:
                ids += self._text(text, ids[-1] if ids else after)
                ids.append(control)
                text = ""
        ids += self._text(text, ids[-1] if ids else after)
        return tuple(ids)

    def _pieces(self, parts: Iterable[Part]) -> Iterator[tuple[str, int | None]]:
        """Text, and the control token that follows it, if one does."""
        for part in parts:
            end = 0
            if part.template:
                encoded = self._whole.encode(part.text, add_special_tokens=False)
                for token_id, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
                    if token_id in self._controls:
                        yield part.text[end:start], token_id
                        end = stop
            yield part.text[end:], None

    def _text(self, text: str, after: int | None) -> list[int]:
        if not text:
            return []
        place: _Place = "start" if after is None else "after_control" if after in self._controls else "inside"
        try:
            [encoded] = self._plain[place].encode_batch_fast([text], add_special_tokens=False)  # without offsets
        except TypeError:
            _check_text(text)
            raise
        ids: list[int] = encoded.ids
        _refuse(ids, self._never)
        if self._unknown is not None and self._unknown in ids:
            self._tell_of_unknown(text, place, self._unknown)
        return ids

    def _tell_of_unknown(self, text: str, place: _Place, unknown: int) -> None:
        """Warn, once, of text that this tokenizer cannot write."""
        if self._warned:
            return
        self._warned = True
        encoded = self._plain[place].encode(text, add_special_tokens=False)
        start, stop = encoded.offsets[encoded.ids.index(unknown)]
        log.warning(
            "model: the tokenizer cannot write %s (and perhaps more); the model reads its unknown token there. Choose "
            "a model whose tokenizer knows all bytes, or leave out the rows with such text.",
            " ".join(f"U+{ord(character):04X}" for character in text[start:stop][:4]) or "some text",
        )


class _SlowEncoder(TextEncoder):
    """With a tokenizer written in Python, part by part."""

    divides = False  # it may put a space before each

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added: Mapping[int, Any] = tokenizer.added_tokens_decoder
        controls = {i for i, t in added.items() if _is_control(str(t.content), special=t.special)}
        self._never = frozenset(controls - {tokenizer.unk_token_id})

    def encode(self, parts: Iterable[Part], after: int | None = None) -> Ids:
        """See `TextEncoder`; each part is encoded by itself."""
        ids: list[int] = []
        for part in parts:
            _check_text(part.text)
            options = {} if part.template else {"split_special_tokens": True}
            found = self._tokenizer(part.text, add_special_tokens=False, **options)["input_ids"] if part.text else []
            if not part.template:
                _refuse(found, self._never)
            ids += found
        return tuple(ids)


# ------------------------------------------------------------------ copies of a fast tokenizer


class _PlainCopies:
    """Copies without control tokens, by where a text stands: some tokenizers put a space before what begins one."""

    def __init__(self, state: Mapping[str, Any], controls: Iterable[str]) -> None:
        nonce = secrets.token_hex(16)  # in no id, only in names that no text may spell
        self._state = _renamed(state, {content: f"{nonce}{i}" for i, content in enumerate(controls)})

    def __getitem__(self, place: _Place) -> Tokenizer:
        if place == "start":
            return self.start
        return self.after_control if place == "after_control" else self.inside

    @cached_property
    def start(self) -> Tokenizer:
        return _load(self._state)

    @cached_property
    def after_control(self) -> Tokenizer:
        return self._variant(_not_first)

    @cached_property
    def inside(self) -> Tokenizer:
        return self._variant(_no_prefix)

    def _variant(self, change: Any) -> Tokenizer:
        state = {**self._state, **{key: change(self._state[key]) for key in ("normalizer", "pre_tokenizer")}}
        return self.start if state == self._state else _load(state)


def _load(state: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(state))


def _not_first(node: Any) -> Any:
    """A normalizer or pre-tokenizer without the space before the beginning of a sequence."""
    if isinstance(node, list):
        return [_not_first(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _not_first(value) for key, value in node.items()}
    return {**node, "prepend_scheme": "never"} if node.get("prepend_scheme") == "first" else node


def _no_prefix(node: Any) -> Any:
    """A normalizer or pre-tokenizer that puts no space before any text."""
    if isinstance(node, list):
        return [_no_prefix(item) for item in node if not (isinstance(item, dict) and item.get("type") == "Prepend")]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "Prepend":
        return None
    without = {"prepend_scheme": "never", "add_prefix_space": False}
    return {key: without.get(key, _no_prefix(value)) for key, value in node.items()}


def _unknown_token(model: Mapping[str, Any]) -> str | None:
    """What the model writes for what it does not know: no control token, whatever it is marked as."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    token: str | None = model.get("unk_token")
    return token


def _renamed(state: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The tokenizer with control tokens of other names; merges that would make one are left out."""
    model = dict(state["model"])
    vocabulary = model["vocab"]
    pieces = vocabulary if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary}
    added = [
        {**token, "content": names.get(token["content"], token["content"])}
        for token in state["added_tokens"]
        # the model finds the bytes among its pieces; as added tokens, text could name them
        if not (_BYTE.fullmatch(token["content"]) and token["content"] in pieces)
    ]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    else:  # Unigram: pairs of piece and score
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if names.keys().isdisjoint(_made_of(merge))]
    return {**state, "added_tokens": added, "model": model}


def _made_of(merge: str | Sequence[str]) -> tuple[str, str, str]:
    """A merge's two halves and what it makes."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right
