"""Tokenizers of several kinds, each with control tokens, trained on a few lines: for tests of what text becomes."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "What is 7 * 6 - 2? First note 7 * 6 = 42.\nThen 42 - 2 = 40.\n\nAnswer: 40",
    "You grade an attempt at a problem. Reply with the score alone: Score: 1 2 3 4 5",
    "<|im_start|>user <|im_end|> assistant system <think> </think> <tool_call> </s> <s> <unk> [INST] [/INST]",
    *(chr(code) * 2 for code in range(32, 127)),
] * 3

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "</s>"]
TAGS = ["<think>", "</think>", "<tool_call>"]


def wrapped(backend: Tokenizer, chat_template: str = CHATML) -> PreTrainedTokenizerFast:
    """The control tokens of `SPECIAL`, and `TAGS`, which are added without being special, as in Qwen3."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="</s>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return tokenizer


def byte_level(*, prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of Qwen and SmolLM2, whose merges have learnt some control tokens' texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "merged_with_next"), pre_tokenizers.ByteLevel(prefix_space, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return wrapped(backend)


def metaspace(scheme: str = "first") -> PreTrainedTokenizerFast:
    """BPE with Metaspace and byte fallback, as of Llama 2 and Mistral."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return wrapped(backend)


def prepending() -> PreTrainedTokenizerFast:
    """The same with a normalizer that prepends, as Llama 2 was first converted."""
    tokenizer = metaspace("never")
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return tokenizer


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's Unigram, as of T5 and XLM-R, which holds its control tokens as pieces that text can spell."""
    characters = sorted({*"".join(CORPUS), "\u2581", *map(chr, range(33, 127)), "\n"} - {" "})
    pieces = [("<unk>", 0.0), *((token, 0.0) for token in (*SPECIAL, *TAGS, "<s>"))]
    pieces += [(character, -9.0) for character in characters]
    pieces += [(word, -6.0) for word in ("\u2581What", "\u2581is", "note", "assistant", "user")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme="always", split=True)
    backend.decoder = decoders.Metaspace("\u2581", prepend_scheme="always")
    return wrapped(backend)


def word_piece() -> PreTrainedTokenizerFast:
    """BERT's WordPiece, lower-casing, on words between spaces, which may be a control token's text."""
    characters = [chr(code) for code in range(33, 127)]
    tokens = ["[UNK]", *SPECIAL, *TAGS, *characters, *(f"##{character}" for character in characters), "what", "is"]
    backend = Tokenizer(
        models.WordPiece({token: number for number, token in enumerate(dict.fromkeys(tokens))}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    return wrapped(backend)


def word_level() -> PreTrainedTokenizerFast:
    """A token a character."""
    characters = ["\n", *map(chr, range(32, 127))]
    tokens = ["<unk>", *SPECIAL, *TAGS, *characters]
    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return wrapped(backend)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "byte-level with a prefix space": lambda: byte_level(prefix_space=True),
    "metaspace first": metaspace,
    "metaspace always": lambda: metaspace("always"),
    "prepend": prepending,
    "unigram": unigram,
    "wordpiece": word_piece,
    "word-level": word_level,
}
