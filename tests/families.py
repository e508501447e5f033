"""Every causal-LM family of transformers in miniature, with random weights: what tests and benchmarks walk over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from exprl.engines.base import Engine, Sampling
from exprl.engines.canary import TOLERANCES
from exprl.errors import ExprlError, one_line
from exprl.models.attention import complete_attention
from exprl.models.base import LanguageModel
from exprl.models.logits import head_of
from exprl.training.batching import TokenSequence, collate
from exprl.training.policy import response_logprobs
from exprl.training.start_check import check_agreement
from exprl.types import Prompt
from tests.conftest import character_tokenizer

VOCABULARY = 104

_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim")
_INNER = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "dff", "ffn_hidden_size", "dim_ff")

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(_HIDDEN, 32),
    **dict.fromkeys(_INNER, 64),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "num_blocks"), 2),
    "encoder_layers": 1,
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), 128),
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state"), 8),
    "sliding_window": 8,
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "is_decoder": True,
    **dict.fromkeys(("logits_scaling", "lm_head_multiplier", "output_multiplier"), 8.0),  # some families begin at 1
    **dict.fromkeys(("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"), 5.0),
    "attn_logit_softcapping": 2.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),  # distributions far from uniform
}
"""Fields of configs that have them, whatever the family."""

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCABULARY},
    "gemma4_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCABULARY},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "jamba": {"layer_types": None, "attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 2},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "qwen4_exp_text": {"layer_types": None, "num_hidden_layers": 2},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba2": {
        "layer_types": None,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "num_key_value_heads": None,
        "head_dim": None,
        "adapter_rank": 4,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "chunk_size": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What the sizes do not fit; None: leave the field out."""

WIDE: dict[str, Any] = {
    **dict.fromkeys(_HIDDEN, 64),
    **dict.fromkeys(_INNER, 128),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 2),
    "num_key_value_heads": 1,
    "head_dim": 32,
    "sliding_window": 16,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), 256),
}
"""Sizes that vLLM's attention on a CPU can compute: its smallest heads are 32 wide."""

_ONE_MODEL = {
    "attn_config",
    "ffn_config",
    "audio_encoder_config",
    "depth_decoder_config",
}  # sub-configs of a single decoder
_LARGEST = 5_000_000


class NoMiniatureError(Exception):
    """A family that cannot be built small; the message says why."""


def families() -> list[str]:
    """Every causal-LM family transformers knows, by its `model_type`."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@cache
def _config(family: str, wide: bool) -> Any:
    kind = CONFIG_MAPPING[family]
    try:
        default = kind()
    except Exception as error:
        raise NoMiniatureError(f"its config has no default ({_first_line(error)})") from error
    parts = sorted({*default.sub_configs} - _ONE_MODEL)
    if parts:
        raise NoMiniatureError(f"it is made of several models ({', '.join(parts)}), each a family of its own")
    sizes = {**SIZES, **WIDE} if wide else SIZES
    options = {name: value for name, value in sizes.items() if _has(default, name) and _settable(kind, name)}
    if "kv_lora_rank" in options and "num_key_value_heads" in options:
        options["num_key_value_heads"] = options["num_attention_heads"]  # latent attention has no groups
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ())) if _has(default, "layer_types") else []
    if len(kinds) > 1:
        options |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    try:
        fitted = {**options, **OVERRIDES.get(family, {})}
        return kind(**{name: value for name, value in fitted.items() if value is not None})
    except Exception as error:
        raise NoMiniatureError(f"its config refuses small sizes ({_first_line(error)})") from error


def miniature(family: str, seed: int = 0, *, wide: bool = False) -> PreTrainedModel:
    """A random float32 model of tens of thousands of parameters in eval mode; `wide`: with heads that vLLM can compute.

    Raises:
        NoMiniatureError: it cannot be built small; the message says why.
    """
    config = copy.deepcopy(_config(family, wide))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
            if size > _LARGEST:
                raise NoMiniatureError(f"it stays at {size / 1e6:.0f} M parameters")
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except NoMiniatureError:
            raise
        except Exception as error:
            raise NoMiniatureError(f"it cannot be built ({_first_line(error)})") from error
        with torch.no_grad():
            for parameter in model.parameters():  # what families start at 0 or 1 would hide a fault
                if parameter.is_floating_point():
                    parameter += 0.02 * torch.randn_like(parameter)
    complete_attention(model)
    return model.eval()


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # noqa: BLE001 - a few raise errors of other kinds, to say that they have no such thing
        return False


def _settable(kind: type, name: str) -> bool:
    field = getattr(kind, name, None)
    return not isinstance(field, property) or field.fset is not None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)[:120]}"


# ------------------------------------------------------------------ what becomes of a family


@dataclass(frozen=True)
class Outcome:
    """One family on one engine.

    Attributes:
        kind: "agreed" (engine, trainer and the model's own forward pass, log-probs by the fused kernel), "own forward"
            (the same, logits by the model itself), "refused" by name, "no miniature", or what must never be: "differs",
            "broke".
        detail: the largest difference of any token, or why.
    """

    kind: str
    detail: str = ""


ALLOWED = TOLERANCES["float32"]
"""Mean absolute difference of log-probs, as the check at the start of a run allows in float32."""


def examine(family: str, engine_of: Callable[[LanguageModel], Engine], *, wide: bool = False) -> Outcome:
    """Make the start check on a family's miniature, and compare other rollouts by the same measure."""
    try:
        model = miniature(family, wide=wide)
    except NoMiniatureError as error:
        return Outcome("no miniature", str(error))
    policy = LanguageModel(model=model, tokenizer=character_tokenizer(), name=family)
    engine = None
    try:
        engine = engine_of(policy)
        check_agreement(policy, engine, packed=False)
        gaps = differences(policy, engine)
    except ExprlError as error:
        named = family in str(error) or type(model).__name__ in str(error)
        return Outcome("refused" if named else "broke", one_line(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it was not refused
        return Outcome("broke", _first_line(error))
    finally:
        if engine is not None:
            engine.close()
    affine = head_of(model).affine is not None
    within = bool((gaps.mean(-1) <= ALLOWED).all())
    return Outcome("differs" if not within else "agreed" if affine else "own forward", f"{float(gaps.max()):.1g}")


def differences(policy: LanguageModel, engine: Engine, temperature: float = 0.8) -> Tensor:
    """[2, N] absolute differences of tokens' log-probs from the plain forward pass: the engine's, the trainer's."""
    prompts = [
        Prompt(
            problem_id=str(length), text="", token_ids=tuple((11 * place + length) % 97 + 3 for place in range(length))
        )
        for length in (5, 12, 12)
    ]
    sampling = Sampling(n=2, temperature=temperature, max_new_tokens=12, seed=3)
    rollouts = [rollout for _, rollout in engine.generate(prompts, sampling)]
    sequences = [
        TokenSequence(prompt_ids=r.prompt.token_ids, response_ids=r.token_ids, advantages=(0.0,) * len(r))
        for r in rollouts
    ]
    batch = collate(sequences, pad_token_id=0, device=policy.model.device)
    with torch.no_grad():
        trainer = response_logprobs(policy.model, batch, temperature=temperature).logp
        plain = torch.cat([plain_logprobs(policy.model, s, temperature) for s in sequences])
    sampled = torch.tensor([p for r in rollouts for p in r.sampler_logprobs])
    return (torch.stack([sampled, trainer]) - plain).abs()


def plain_logprobs(model: PreTrainedModel, sequence: TokenSequence, temperature: float = 1.0) -> Tensor:
    """[N] log-probs of a response by the model's plain forward pass over the whole sequence, its attention by the book.

    Its own attention may be a fused one, which could leave out what the family asks for.
    """
    fused = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        logits = model(input_ids=torch.tensor([sequence.ids]), use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(fused)
    logprobs = (logits[len(sequence.prompt_ids) - 1 : -1] / temperature).log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(sequence.response_ids)[:, None])[:, 0]


def table(outcomes: Mapping[str, Outcome]) -> str:
    """The outcomes by kind, as Markdown."""
    lines = []
    for kind in sorted({outcome.kind for outcome in outcomes.values()}):
        chosen = {family: outcome for family, outcome in outcomes.items() if outcome.kind == kind}
        lines += ["", f"**{kind}: {len(chosen)}**", ""]
        if kind in ("agreed", "own forward"):
            lines.append(", ".join(f"{family} ({outcome.detail})" for family, outcome in chosen.items()))
        else:
            lines += [f"- {family}: {outcome.detail[:300]}" for family, outcome in chosen.items()]
    return "\n".join(lines[1:])
