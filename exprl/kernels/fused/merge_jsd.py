"""Add a slice's part of the two halves of the Jensen-Shannon divergence: one program a token."""

import triton
import triton.language as tl

from exprl.kernels.fused.loading import expectation, load_capped, log_mean


@triton.jit
def halves(
    z,
    z_frozen,
    start,
    width,
    inverse,
    normaliser,
    normaliser_frozen,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    PARTIAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Both halves of one block of a token's logits; `PARTIAL` if it may reach past `width`."""
    columns = start + tl.arange(0, BLOCK)
    log_p = load_capped(z, columns, width, softcap, HAS_SOFTCAP, PARTIAL) * inverse - normaliser
    log_q = load_capped(z_frozen, columns, width, softcap, HAS_SOFTCAP, PARTIAL) * inverse - normaliser_frozen
    middle = log_mean(log_p, log_q)
    policy_part = 0.5 * expectation(tl.exp(log_p), log_p - middle)
    return policy_part, 0.5 * expectation(tl.exp(log_q), log_q - middle)


@triton.jit(do_not_specialize=["tokens", "width"])
def merge_jsd_kernel(
    sums,  # [2, tokens]
    z,  # [tokens, width]
    z_frozen,
    inverse_temperature,  # [tokens], 1 / temperature
    lse,  # [tokens]
    frozen_lse,
    stride,
    frozen_stride,
    tokens,
    width,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """See `exprl.kernels.rows.merge_jsd`."""
    token = tl.program_id(0)
    row = token.to(tl.int64)
    z += row * stride
    z_frozen += row * frozen_stride
    inverse = tl.load(inverse_temperature + token)
    normaliser = tl.load(lse + token)
    normaliser_frozen = tl.load(frozen_lse + token)
    policy_half = tl.load(sums + token)
    frozen_half = tl.load(sums + tokens + token)
    whole = width - width % BLOCK
    for start in range(0, whole, BLOCK):
        policy_part, frozen_part = halves(
            z, z_frozen, start, width, inverse, normaliser, normaliser_frozen, softcap, HAS_SOFTCAP, False, BLOCK
        )
        policy_half += policy_part
        frozen_half += frozen_part
    if whole < width:
        policy_part, frozen_part = halves(
            z, z_frozen, whole, width, inverse, normaliser, normaliser_frozen, softcap, HAS_SOFTCAP, True, BLOCK
        )
        policy_half += policy_part
        frozen_half += frozen_part
    tl.store(sums + token, policy_half)
    tl.store(sums + tokens + token, frozen_half)
