"""Decoded text with the character at which each sampled token ends, so that slicers never tokenise text again.

Three ways to decode, picked once a tokenizer by its decoder: byte-level BPE (Qwen, Llama 3, SmolLM) and plain joining
keep one byte string a token; SentencePiece with byte fallback (Llama 2, Mistral, Gemma) keeps pieces and lone bytes;
every other tokenizer decodes a short sliding window. All are linear in the number of tokens.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"


def decode_with_ends(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """The response's text and, for each of T tokens, the offset in it at which the token's text ends.

    `text` is `tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)`. Special
    tokens and unknown ids have no width. A token that ends inside a character ends where that character begins: the
    token that completes it holds all of it. The same goes for a run of bytes that decodes to a replacement character.

    Args:
        tokenizer: a Hugging Face tokenizer; what it needs for decoding is cached for as long as it lives.
        token_ids: T sampled ids.

    Returns:
        text, and T offsets, non-decreasing, the last one `len(text)`.
    """
    if not token_ids:
        return "", ()
    decoder = _decoder_of(tokenizer)
    text, ends = decoder.decode(token_ids) if decoder is not None else _decode_by_window(tokenizer, token_ids)
    return text, tuple(ends)


class _Decoder(ABC):
    """Holds what one tokenizer's decoding needs, never the tokenizer itself: the cache would keep that alive."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> tuple[str, list[int]]:
        """Text and the T ends."""


_DECODERS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, _Decoder | None]] = WeakKeyDictionary()


def _decoder_of(tokenizer: PreTrainedTokenizerBase) -> _Decoder | None:
    size = len(tokenizer)  # tokens added later change what is special
    known = _DECODERS.get(tokenizer)
    if known is None or known[0] != size:
        known = (size, _make_decoder(getattr(tokenizer, "backend_tokenizer", None)))
        _DECODERS[tokenizer] = known
    return known[1]


def _make_decoder(backend: Tokenizer | None) -> _Decoder | None:
    """A decoder by pieces where the backend's decoder is known to join them; None asks for the window."""
    if backend is None or backend.decoder is None:
        return None
    state = json.loads(backend.decoder.__getstate__())
    if state["type"] == "ByteLevel":
        return _ByteDecoder(_Pieces(backend, _byte_level))
    if state["type"] == "Fuse":
        return _ByteDecoder(_Pieces(backend, str.encode))
    steps = state.get("decoders", [])
    strip = _leading_strip(steps[3:])
    if [step["type"] for step in steps[:3]] != ["Replace", "ByteFallback", "Fuse"] or strip is None:
        return None
    pattern = steps[0]["pattern"].get("String")
    if pattern is None:
        return None
    return _ByteFallbackDecoder(_Pieces(backend, _fallback_piece(pattern, steps[0]["content"])), *strip)


def _leading_strip(steps: list[dict[str, Any]]) -> tuple[str, int] | None:
    """Content and count of a final `Strip` at the start, a count of 0 for none; None for any other step."""
    if not steps:
        return " ", 0
    if len(steps) == 1 and steps[0]["type"] == "Strip" and steps[0]["stop"] == 0:
        return steps[0]["content"], steps[0]["start"]
    return None


# ------------------------------------------------------------------ one piece a token


class _Pieces(dict[int, Any]):
    """Token id -> what it adds, made from its written form when first met; special and unknown ids add b""."""

    def __init__(self, backend: Tokenizer, convert: Callable[[str], Any]) -> None:
        super().__init__()
        self._backend = backend
        self._convert = convert
        added = backend.get_added_tokens_decoder()
        self._special = {token.content for token in added.values() if token.special}

    def __missing__(self, token_id: int) -> Any:
        token = self._backend.id_to_token(token_id)
        piece = b"" if token is None or token in self._special else self._convert(token)
        self[token_id] = piece
        return piece


def _gpt2_bytes() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the other 68 for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(0x100 + i): byte for i, byte in enumerate(others)}}


_GPT2_BYTES = _gpt2_bytes()


def _byte_level(token: str) -> bytes:
    """The bytes of a byte-level token; an added token outside the alphabet stands for its own UTF-8."""
    try:
        return bytes(_GPT2_BYTES[char] for char in token)
    except KeyError:
        return token.encode()


def _fallback_piece(pattern: str, content: str) -> Callable[[str], bytes | int]:
    """A converter to the UTF-8 of a piece, or to the integer a byte token `<0xE2>` stands for."""

    def convert(token: str) -> bytes | int:
        byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
        return int(byte[1], 16) if byte else token.replace(pattern, content).encode()

    return convert


class _ByteDecoder(_Decoder):
    def __init__(self, pieces: _Pieces) -> None:
        self._pieces = pieces

    def decode(self, token_ids: Sequence[int]) -> tuple[str, list[int]]:
        parts: list[bytes] = [self._pieces[token_id] for token_id in token_ids]
        data = b"".join(parts)
        text = data.decode(errors="replace")
        byte_ends = list(accumulate(map(len, parts)))
        return text, byte_ends if len(text) == len(data) else _characters_before(data, byte_ends)


class _ByteFallbackDecoder(_Decoder):
    def __init__(self, pieces: _Pieces, strip: str, count: int) -> None:
        self._pieces = pieces
        self._strip = strip
        self._count = count

    def decode(self, token_ids: Sequence[int]) -> tuple[str, list[int]]:
        parts = _resolve_byte_runs([self._pieces[token_id] for token_id in token_ids])
        data = b"".join(parts)
        text = data.decode()
        ends = _characters_before(data, list(accumulate(map(len, parts))))
        kept = text
        for _ in range(self._count):
            kept = kept.removeprefix(self._strip)
        dropped = len(text) - len(kept)
        return kept, [max(end - dropped, 0) for end in ends]


def _resolve_byte_runs(pieces: Sequence[bytes | int]) -> list[bytes]:
    """Bytes a token; a run of byte tokens that is not UTF-8 as a whole gives a replacement character for each byte."""
    parts = [bytes([piece]) if isinstance(piece, int) else piece for piece in pieces]
    run: list[int] = []
    for index, piece in enumerate([*pieces, b"|"]):
        if isinstance(piece, int):
            run.append(index)
        elif piece:  # a skipped token leaves the run whole
            try:
                b"".join(parts[i] for i in run).decode()
            except UnicodeDecodeError:
                for i in run:
                    parts[i] = REPLACEMENT.encode()
            run = []
    return parts


def _characters_before(data: bytes, byte_ends: Sequence[int]) -> list[int]:
    """For each byte offset the number of characters of `data.decode(errors="replace")` complete at it."""
    codes = np.frombuffer(data, dtype=np.uint8)
    begins = (codes & 0xC0) != 0x80
    for start, end in _invalid_spans(data):
        begins[start:end] = False
        begins[start] = True
    # A character is complete when the next one begins: count the beginnings after it has begun.
    complete = np.zeros(len(data) + 1, dtype=np.int64)
    complete[1:] = np.cumsum(begins)
    inside = np.append(~begins, False)
    ends: list[int] = (complete - inside)[np.asarray(byte_ends, dtype=np.int64)].tolist()
    return ends


def _invalid_spans(data: bytes) -> list[tuple[int, int]]:
    """Byte spans that decode to one replacement character each."""
    spans, position, view = [], 0, memoryview(data)
    while position < len(data):
        try:
            str(view[position:], "utf-8")
            break
        except UnicodeDecodeError as error:
            spans.append((position + error.start, position + error.end))
            position += error.end
    return spans


# ------------------------------------------------------------------ any tokenizer


def _decode_by_window(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> tuple[str, list[int]]:
    """Decodes the last few tokens at each step; a step that ends inside a character is held back until it is whole.

    Exact as long as a token changes no text before the window. Where one does, the offsets stay within the part that
    agrees with the whole text, and the last token still reaches its end.
    """

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    text, special = decode(token_ids), set(tokenizer.all_special_ids)
    window: list[int] = []
    context, shown, written, last, agreed = 0, "", 0, len(token_ids) - 1, True
    ends: list[int] = []
    for index, token_id in enumerate(token_ids):
        if token_id not in special:
            last = index
            window.append(token_id)
            now = decode(window)
            if len(now) > len(shown) and not now.endswith(REPLACEMENT):
                agreed = agreed and text.startswith(now[len(shown) :], written)
                written += len(now) - len(shown) if agreed else 0
                window, context = window[context:], len(window) - context
                shown = decode(window)
        ends.append(written)
    return text, ends[:last] + [len(text)] * (len(token_ids) - last)
