"""Turn a slice of logits into its gradient: one program a token."""

import triton
import triton.language as tl

from exprl.kernels.fused.loading import load_capped, log_mean


@triton.jit
def write_block(
    out,
    z,
    z_frozen,
    start,
    width,
    inverse,
    normaliser,
    normaliser_frozen,
    constant,
    slope,
    at_chosen,
    weight,
    column,
    softcap,
    DIVERGENCE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PARTIAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of one block of a token's logits; `PARTIAL` if it may reach past `width`."""
    columns = start + tl.arange(0, BLOCK)
    x = load_capped(z, columns, width, softcap, HAS_SOFTCAP, PARTIAL)
    log_p = x * inverse - normaliser
    p = tl.exp(log_p)
    inner = constant + slope * log_p
    if DIVERGENCE != "none":
        log_q = load_capped(z_frozen, columns, width, softcap, HAS_SOFTCAP, PARTIAL) * inverse - normaliser_frozen
        if DIVERGENCE == "rkl":
            inner += weight * (log_p - log_q)
        if DIVERGENCE == "jsd":
            inner += 0.5 * weight * (log_p - log_mean(log_p, log_q))
    # A token that is ruled out has p = 0 and log p = -inf: no gradient, not 0 · inf.
    dz = tl.where(p > 0.0, p * inner, 0.0)
    if DIVERGENCE == "fkl":
        dz -= weight * tl.exp(log_q)
    dz += tl.where(columns == column, at_chosen, 0.0)
    dz *= inverse
    if HAS_SOFTCAP:
        dz *= 1.0 - (x / softcap) * (x / softcap)
    if PARTIAL:
        tl.store(out + columns, dz.to(out.dtype.element_ty), mask=columns < width)
    else:
        tl.store(out + columns, dz.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["width", "first"])
def gradient_kernel(
    out,  # [R, width]; may be z
    z,
    z_frozen,
    ids,  # [tokens]
    inverse_temperature,  # [tokens], 1 / temperature
    rows,  # [tokens], rows of z and out
    lse,  # [tokens]; then the coefficients of exprl.kernels.rows.GradientCoefficients
    frozen_lse,
    a,
    b,
    g,
    d,
    out_stride,
    stride,
    frozen_stride,
    width,
    first,
    softcap,
    DIVERGENCE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """See `exprl.kernels.rows.gradient`."""
    token = tl.program_id(0)
    row = token.to(tl.int64)
    if HAS_ROWS:
        row = tl.load(rows + token)
    out += row * out_stride
    z += row * stride
    z_frozen += row * frozen_stride
    inverse = tl.load(inverse_temperature + token)
    normaliser = tl.load(lse + token)
    normaliser_frozen = tl.load(frozen_lse + token)
    constant = tl.load(a + token)
    slope = tl.load(b + token)
    at_chosen = tl.load(g + token)
    weight = tl.load(d + token)
    column = tl.load(ids + token) - first
    whole = width - width % BLOCK
    for start in range(0, whole, BLOCK):
        write_block(
            out,
            z,
            z_frozen,
            start,
            width,
            inverse,
            normaliser,
            normaliser_frozen,
            constant,
            slope,
            at_chosen,
            weight,
            column,
            softcap,
            DIVERGENCE,
            HAS_SOFTCAP,
            False,
            BLOCK,
        )
    if whole < width:
        write_block(
            out,
            z,
            z_frozen,
            whole,
            width,
            inverse,
            normaliser,
            normaliser_frozen,
            constant,
            slope,
            at_chosen,
            weight,
            column,
            softcap,
            DIVERGENCE,
            HAS_SOFTCAP,
            True,
            BLOCK,
        )
