"""What the kernels of the norms are made of.

GELU by tanh is z * sigmoid(2u) with u = sqrt(2 / pi) * (z + 0.044715 * z**3), since (1 + tanh(u)) / 2 = sigmoid(2u)
(Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016).
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["before_gelu", "factors_of", "gain_of", "map_tile", "read", "write"]

_TWICE, _THREE_CUBIC = tl.constexpr(1.5957691216057308), tl.constexpr(0.134145)
"""2 * sqrt(2 / pi), and three times GELU's coefficient."""

_LINEAR, _CUBIC = tl.constexpr(-2.302208198144325), tl.constexpr(-0.10294323958002349)
"""-2 * sqrt(2 / pi) / ln(2), and that times GELU's coefficient: the gate's exponent to the base 2."""


@triton.jit
def map_tile(item, p, positions, first, block: tl.constexpr, channels):
    """Channels from ``first`` on of some positions: their numbers, where they lie, and which of them there are."""
    c = first + tl.arange(0, block)
    inside = (c < channels)[:, None] & (p < positions)[None, :]
    return c, (item * channels + c)[:, None] * positions + p[None, :], inside


@triton.jit
def read(place, inside):
    """In float32, zero outside."""
    return tl.load(place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def write(place, result, inside, gelu: tl.constexpr):
    """The result or its GELU, rounded once."""
    if gelu:
        result *= _gate(result)
    tl.store(place, result.to(place.dtype.element_ty), mask=inside)


@triton.jit
def _gate(z):
    """What GELU multiplies z by."""
    return 1.0 / (1.0 + tl.exp2((z * z * _CUBIC + _LINEAR) * z))


@triton.jit
def before_gelu(g, z, gelu: tl.constexpr):
    """The gradient of z from that of its GELU, where there is one."""
    if gelu:
        gate = _gate(z)
        g *= gate + z * gate * (1.0 - gate) * (z * z * _THREE_CUBIC + 1.0) * _TWICE
    return g


@triton.jit
def gain_of(weight, c, channels, offset):
    """What each channel is multiplied by."""
    gain = tl.full(c.shape, 1.0, tl.float32)
    if weight is not None:
        gain = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32) + offset
    return gain


@triton.jit
def factors_of(scale, c, channels):
    """The power of two of each channel."""
    factors = tl.full(c.shape, 1.0, tl.float32)
    if scale is not None:
        factors = tl.load(scale + c, mask=c < channels, other=0.0)
    return factors
