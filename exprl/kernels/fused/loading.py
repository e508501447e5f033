"""What every kernel does with a logit on its way in."""

import triton
import triton.language as tl


@triton.jit
def capped(raw, softcap, HAS_SOFTCAP: tl.constexpr):
    """Softcap·tanh(raw / softcap), with tanh(x) = 1 - 2 / (exp(2x) + 1), which saturates and never overflows."""
    x = raw
    if HAS_SOFTCAP:
        x = softcap * (1.0 - 2.0 / (tl.exp(2.0 * raw / softcap) + 1.0))
    return x


@triton.jit
def load_capped(pointer, columns, width, softcap, HAS_SOFTCAP: tl.constexpr, PARTIAL: tl.constexpr):
    """Logits of one token as fp32; in a block that may reach past `width`, -inf beyond.

    A mask that Triton knows nothing of keeps it from loading several numbers at once, so whole blocks have none.
    """
    if PARTIAL:
        inside = columns < width
        raw = tl.load(pointer + columns, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, capped(raw, softcap, HAS_SOFTCAP), float("-inf"))
    else:
        x = capped(tl.load(pointer + columns).to(tl.float32), softcap, HAS_SOFTCAP)
    return x


@triton.jit
def rebased(x, m):
    """Returns x - m', its exp, and how sums relative to the old maximum m become sums relative to the new one m'."""
    top = tl.maximum(m, tl.max(x, axis=0))
    base = tl.where(top == float("-inf"), 0.0, top)
    c = x - base
    shift = tl.where(m == float("-inf"), 0.0, m - base)
    return c, tl.exp(c), tl.exp(m - base), shift, top


@triton.jit
def expectation(weights, values):
    """Σ weights · values, where a weight of 0 makes nothing of an infinite value."""
    return tl.sum(tl.where(weights > 0.0, weights * values, 0.0), axis=0)


@triton.jit
def rescaled(scale, total):
    """Scale · total, where a scale that underflows to 0 makes nothing of an infinite total."""
    return tl.where(scale > 0.0, scale * total, 0.0)


@triton.jit
def log_mean(log_p, log_q):
    """Log of (p + q) / 2."""
    high = tl.maximum(log_p, log_q)
    low = tl.minimum(log_p, log_q)
    # Both -inf: there is no mass, and the difference would be NaN.
    gap = tl.where(high == float("-inf"), 0.0, low - high)
    return high + tl.log(1.0 + tl.exp(gap)) - 0.6931471805599453
