"""The kernels of :mod:`.norms_fused`: each program normalises some positions, with all of their channels in registers.

GELU by tanh is z * sigmoid(2u) with u = sqrt(2 / pi) * (z + 0.044715 * z**3), since (1 + tanh(u)) / 2 = sigmoid(2u)
(Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016).
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["backward", "forward"]

_TWICE, _CUBIC, _THREE_CUBIC = tl.constexpr(1.5957691216057308), tl.constexpr(0.044715), tl.constexpr(0.134145)
"""2 * sqrt(2 / pi), GELU's coefficient, and three times that."""


@triton.jit
def forward(
    x, y, weight, scale, inverse, channels, positions, eps, offset,
    has_weight: tl.constexpr, has_scale: tl.constexpr, gelu: tl.constexpr, channels_last: tl.constexpr,
    block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """Normalises ``block_p`` positions of one batch item.

    Args:
        x: Input, (batch, channels, positions), or (1, positions, channels) if channels come last.
        y: The result, laid out alike.
        weight: Shape (channels,).
        scale: Shape (channels,), float32.
        inverse: Where 1 / sqrt(mean square + eps) goes, shape (batch, positions), float32.
        channels: How many there are, at most ``block_c``.
        positions: How many there are in a batch item.
        eps: Added to the mean square.
        offset: Added to the weight.
        has_weight: Whether there is one.
        has_scale: Whether there is one.
        gelu: Whether GELU follows.
        channels_last: How x lies.
        block_c: Channels of a tile, a power of two.
        block_p: Positions of a tile, a power of two.
    """
    c, p, place, inside = _tile(channels, positions, channels_last, block_c, block_p)
    values = _values(x + place, scale, c, channels, inside, has_scale)
    factor = tl.rsqrt(tl.sum(values * values, axis=1) / channels + eps)
    result = values * factor[:, None]
    if has_weight:
        result *= _gain(weight, c, channels, offset)[None, :]
    if gelu:
        result *= _gate(result)
    tl.store(y + place, result.to(y.dtype.element_ty), mask=inside)
    tl.store(inverse + tl.program_id(1).to(tl.int64) * positions + p, factor, mask=p < positions)


@triton.jit
def backward(
    grad, x, dx, weight, dw, scale, inverse, channels, positions, offset,
    has_weight: tl.constexpr, has_scale: tl.constexpr, gelu: tl.constexpr, channels_last: tl.constexpr,
    block_c: tl.constexpr, block_p: tl.constexpr, sums: tl.constexpr, frozen: tl.constexpr,
):  # fmt: skip
    """The gradients of ``block_p`` positions.

    Args:
        grad: Of the result.
        x: As in :func:`forward`.
        dx: Where the gradient of x goes.
        weight: As in :func:`forward`.
        dw: Where that of the weight is added up, shape (sums, channels), float32.
        scale: As in :func:`forward`.
        inverse: What :func:`forward` put there.
        channels: As in :func:`forward`, and so on.
        positions: See there.
        offset: See there.
        has_weight: See there.
        has_scale: See there.
        gelu: See there.
        channels_last: See there.
        block_c: See there.
        block_p: See there.
        sums: Programs add to so many vectors, so that few wait for each other.
        frozen: Whether nobody wants the weight's gradient.
    """
    c, p, place, inside = _tile(channels, positions, channels_last, block_c, block_p)
    item = tl.program_id(1).to(tl.int64) * positions
    factor = tl.load(inverse + item + p, mask=p < positions, other=0.0)
    normal = _values(x + place, scale, c, channels, inside, has_scale) * factor[:, None]
    g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    z = normal
    if has_weight:
        z = normal * _gain(weight, c, channels, offset)[None, :]
    if gelu:
        gate = _gate(z)
        g *= gate + z * gate * (1.0 - gate) * (z * z * _THREE_CUBIC + 1.0) * _TWICE
    if has_weight and not frozen:
        line = (tl.program_id(0) + tl.program_id(1)) % sums
        tl.atomic_add(dw + line * channels + c, tl.sum(g * normal, axis=0), mask=c < channels, sem="relaxed")
    if has_weight:
        g *= _gain(weight, c, channels, offset)[None, :]
    result = (g - normal * (tl.sum(g * normal, axis=1) / channels)[:, None]) * factor[:, None]
    if has_scale:
        result *= tl.load(scale + c, mask=c < channels, other=0.0)[None, :]
    tl.store(dx + place, result.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _tile(channels, positions, channels_last: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr):
    """Channels and positions of this program's tile, where its elements lie, and which of them there are."""
    c = tl.arange(0, block_c)
    p = tl.program_id(0) * block_p + tl.arange(0, block_p)
    inside = (p < positions)[:, None] & (c < channels)[None, :]
    item = tl.program_id(1).to(tl.int64) * channels * positions
    if channels_last:
        place = item + p.to(tl.int64)[:, None] * channels + c[None, :]
    else:
        place = item + c.to(tl.int64)[None, :] * positions + p[:, None]
    return c, p, place, inside


@triton.jit
def _values(x, scale, c, channels, inside, has_scale: tl.constexpr):
    """What is normalised, zero outside."""
    values = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    if has_scale:
        values *= tl.load(scale + c, mask=c < channels, other=0.0)[None, :]
    return values


@triton.jit
def _gate(z):
    """What GELU multiplies z by."""
    return 1.0 / (1.0 + tl.exp(-(z * z * _CUBIC + 1.0) * z * _TWICE))


@triton.jit
def _gain(weight, c, channels, offset):
    return tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32) + offset
