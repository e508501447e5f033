"""Add a slice's part of the two halves of the Jensen-Shannon divergence: one program a token."""

import triton
import triton.language as tl

from exprl.kernels.fused.loading import expectation, load_capped, log_mean


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
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        log_p = load_capped(z, columns, inside, softcap, HAS_SOFTCAP) * inverse - normaliser
        log_q = load_capped(z_frozen, columns, inside, softcap, HAS_SOFTCAP) * inverse - normaliser_frozen
        middle = log_mean(log_p, log_q)
        policy_half += 0.5 * expectation(tl.exp(log_p), log_p - middle)
        frozen_half += 0.5 * expectation(tl.exp(log_q), log_q - middle)
    tl.store(sums + token, policy_half)
    tl.store(sums + tokens + token, frozen_half)
