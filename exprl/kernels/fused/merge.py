"""Merge a slice of logits into every token's running numbers: one program a token."""

import triton
import triton.language as tl

from exprl.kernels.fused.loading import capped, expectation, load_capped, rebased, rescaled


@triton.jit
def merge_block(
    running,  # m, s, t, m_frozen, s_frozen, d
    z,
    z_frozen,
    start,
    width,
    inverse,
    softcap,
    HAS_FROZEN: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    ENTROPY: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PARTIAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The running numbers after one block of a token's logits; `PARTIAL` if it may reach past `width`."""
    m, s, t, m_frozen, s_frozen, d = running
    columns = start + tl.arange(0, BLOCK)
    c, e, scale, shift, top = rebased(load_capped(z, columns, width, softcap, HAS_SOFTCAP, PARTIAL) * inverse, m)
    if HAS_FROZEN:
        x_frozen = load_capped(z_frozen, columns, width, softcap, HAS_SOFTCAP, PARTIAL) * inverse
        c_frozen, e_frozen, scale_frozen, shift_frozen, top_frozen = rebased(x_frozen, m_frozen)
        if DIVERGENCE == "rkl":
            d = rescaled(scale, d + s * (shift - shift_frozen)) + expectation(e, c - c_frozen)
        if DIVERGENCE == "fkl":
            d = rescaled(scale_frozen, d + s_frozen * (shift_frozen - shift)) + expectation(e_frozen, c_frozen - c)
        s_frozen = scale_frozen * s_frozen + tl.sum(e_frozen, axis=0)
        m_frozen = top_frozen
    if ENTROPY:
        t = rescaled(scale, t + s * shift) + expectation(e, c)
    s = scale * s + tl.sum(e, axis=0)
    return top, s, t, m_frozen, s_frozen, d


# Numbers that differ from call to call are not specialised on: no length is compiled for.
@triton.jit(do_not_specialize=["tokens", "width", "first"])
def merge_kernel(
    state,  # [8, tokens]: see exprl.kernels.rows.FIELDS
    z,  # [R, width]
    z_frozen,
    ids,  # [tokens]
    inverse_temperature,  # [tokens], 1 / temperature
    rows,  # [tokens], rows of z
    stride,
    frozen_stride,
    tokens,
    width,
    first,
    softcap,
    HAS_FROZEN: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    ENTROPY: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """See `exprl.kernels.rows.merge`."""
    token = tl.program_id(0)
    row = token.to(tl.int64)
    if HAS_ROWS:
        row = tl.load(rows + token)
    # int64: past 14,134 rows of 151,936 logits an int32 offset overflows.
    z += row * stride
    z_frozen += row * frozen_stride
    state += token
    inverse = tl.load(inverse_temperature + token)
    m = tl.load(state)
    s = tl.load(state + tokens)
    t = tl.load(state + 2 * tokens)
    m_frozen = tl.load(state + 4 * tokens)
    s_frozen = tl.load(state + 5 * tokens)
    d = tl.load(state + 7 * tokens)
    running = (m, s, t, m_frozen, s_frozen, d)
    whole = width - width % BLOCK
    for start in range(0, whole, BLOCK):
        running = merge_block(
            running,
            z,
            z_frozen,
            start,
            width,
            inverse,
            softcap,
            HAS_FROZEN,
            DIVERGENCE,
            ENTROPY,
            HAS_SOFTCAP,
            False,
            BLOCK,
        )
    if whole < width:
        running = merge_block(
            running,
            z,
            z_frozen,
            whole,
            width,
            inverse,
            softcap,
            HAS_FROZEN,
            DIVERGENCE,
            ENTROPY,
            HAS_SOFTCAP,
            True,
            BLOCK,
        )
    m, s, t, m_frozen, s_frozen, d = running
    tl.store(state, m)
    tl.store(state + tokens, s)
    if ENTROPY:
        tl.store(state + 2 * tokens, t)
    column = tl.load(ids + token) - first
    held = (column >= 0) & (column < width)
    chosen = tl.load(z + column, mask=held, other=0.0).to(tl.float32)
    tl.store(state + 3 * tokens, capped(chosen, softcap, HAS_SOFTCAP) * inverse, mask=held)
    if HAS_FROZEN:
        tl.store(state + 4 * tokens, m_frozen)
        tl.store(state + 5 * tokens, s_frozen)
        tl.store(state + 7 * tokens, d)
        chosen_frozen = tl.load(z_frozen + column, mask=held, other=0.0).to(tl.float32)
        tl.store(state + 6 * tokens, capped(chosen_frozen, softcap, HAS_SOFTCAP) * inverse, mask=held)
