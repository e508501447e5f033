"""Merge a slice of logits into every token's running numbers: one program a token."""

import triton
import triton.language as tl

from exprl.kernels.fused.loading import capped, expectation, load_capped, rebased, rescaled


# Numbers that differ from call to call are not specialised on: no length is compiled for.
@triton.jit(do_not_specialize=["tokens", "width", "first"])
def merge_kernel(
    state,  # [8, tokens]: see exprl.kernels.rows.FIELDS
    z,  # [R, width]
    z_ref,
    ids,  # [tokens]
    heat,  # [tokens], 1 / temperature
    rows,  # [tokens], rows of z
    stride,
    ref_stride,
    tokens,
    width,
    first,
    softcap,
    HAS_REF: tl.constexpr,
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
    z_ref += row * ref_stride
    state += token
    inverse = tl.load(heat + token)
    m = tl.load(state)
    s = tl.load(state + tokens)
    t = tl.load(state + 2 * tokens)
    m_ref = tl.load(state + 4 * tokens)
    s_ref = tl.load(state + 5 * tokens)
    d = tl.load(state + 7 * tokens)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        c, e, scale, shift, top = rebased(load_capped(z, columns, inside, softcap, HAS_SOFTCAP) * inverse, m)
        if HAS_REF:
            x_ref = load_capped(z_ref, columns, inside, softcap, HAS_SOFTCAP) * inverse
            c_ref, e_ref, scale_ref, shift_ref, top_ref = rebased(x_ref, m_ref)
            if DIVERGENCE == "rkl":
                d = rescaled(scale, d + s * (shift - shift_ref)) + expectation(e, c - c_ref)
            if DIVERGENCE == "fkl":
                d = rescaled(scale_ref, d + s_ref * (shift_ref - shift)) + expectation(e_ref, c_ref - c)
            s_ref = scale_ref * s_ref + tl.sum(e_ref, axis=0)
            m_ref = top_ref
        if ENTROPY:
            t = scale * (t + s * shift) + expectation(e, c)
        s = scale * s + tl.sum(e, axis=0)
        m = top
    tl.store(state, m)
    tl.store(state + tokens, s)
    if ENTROPY:
        tl.store(state + 2 * tokens, t)
    column = tl.load(ids + token) - first
    held = (column >= 0) & (column < width)
    chosen = tl.load(z + column, mask=held, other=0.0).to(tl.float32)
    tl.store(state + 3 * tokens, capped(chosen, softcap, HAS_SOFTCAP) * inverse, mask=held)
    if HAS_REF:
        tl.store(state + 4 * tokens, m_ref)
        tl.store(state + 5 * tokens, s_ref)
        tl.store(state + 7 * tokens, d)
        chosen_ref = tl.load(z_ref + column, mask=held, other=0.0).to(tl.float32)
        tl.store(state + 6 * tokens, capped(chosen_ref, softcap, HAS_SOFTCAP) * inverse, mask=held)
