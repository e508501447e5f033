"""The tokenizer and the randomly initialised policy of the miniature world `chain`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from exprl.chain.problems import ANSWER_PREFIX, DELIMITER, LABELS, START_PREFIX

PAD, BOS, EOS, USER, ASSISTANT, UNKNOWN = "<pad>", "<bos>", "<eos>", "<user>", "<assistant>", "<unk>"

_SPECIAL = (PAD, BOS, EOS, USER, ASSISTANT, UNKNOWN)
TOKENS = (ANSWER_PREFIX, START_PREFIX, DELIMITER, *"0123456789", *LABELS, *(f"+{by} " for by in range(10)))
"""Digits, labels, turns (`+3 `, with the space after it), separators, the answer's prefix."""
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    f"{ASSISTANT}" + "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}" + f"{USER}" + "{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}" + f"{ASSISTANT}" + "{% endif %}"
)


def vocabulary(tokens: Sequence[str] = TOKENS) -> dict[str, int]:
    """The special tokens and then `tokens`, numbered."""
    return {token: index for index, token in enumerate((*_SPECIAL, *tokens))}


def build_tokenizer(tokens: Sequence[str] = TOKENS) -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose decoding joins the tokens exactly, with nothing between them.

    Where several of `tokens` stand, the longest is taken; what is no token is read character by character.
    """
    words = sorted((token for token in tokens if len(token) > 1), key=lambda token: (-len(token), token))
    split = "|".join([*map(re.escape, words), r"[\s\S]"])
    tokenizer = Tokenizer(models.WordLevel(vocabulary(tokens), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(split), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT_TEMPLATE,
    )


@dataclass(frozen=True)
class ChainModelConfig:
    """The size of the policy and the seed of its initial weights."""

    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    intermediate_size: int = 384
    max_positions: int = 256
    init_std: float = 0.08
    seed: int = 0


def build_model(config: ChainModelConfig = ChainModelConfig(), tokens: Sequence[str] = TOKENS) -> LlamaForCausalLM:
    """A small Llama with random weights that depend on the arguments alone; the global random state is left alone."""
    vocab = vocabulary(tokens)
    llama = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=False,
        initializer_range=config.init_std,
        pad_token_id=vocab[PAD],
        bos_token_id=vocab[BOS],
        eos_token_id=vocab[EOS],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaForCausalLM(llama)
