"""The kernels of :mod:`.norms_fused`, one pair for channels that lie beside each other and one for maps.

A program holds all channels of some positions in registers, cut into two tiles of a power of two (640 = 512 + 128), so
that few lanes idle: rows where channels come last, and columns of maps (batch, channels, positions).

GELU by tanh is z * sigmoid(2u) with u = sqrt(2 / pi) * (z + 0.044715 * z**3), since (1 + tanh(u)) / 2 = sigmoid(2u)
(Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016).
"""

# mypy: disable-error-code="possibly-undefined"
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["add_parts", "maps_backward", "maps_forward", "rows_backward", "rows_forward"]

_TWICE, _THREE_CUBIC = tl.constexpr(1.5957691216057308), tl.constexpr(0.134145)
"""2 * sqrt(2 / pi), and three times GELU's coefficient."""

_LINEAR, _CUBIC = tl.constexpr(-2.302208198144325), tl.constexpr(-0.10294323958002349)
"""-2 * sqrt(2 / pi) / ln(2), and that times GELU's coefficient: the gate's exponent to the base 2."""


@triton.jit
def rows_forward(
    x, y, weight, scale, inverse, rows, eps, offset,
    channels: tl.constexpr, head: tl.constexpr, rest: tl.constexpr, block: tl.constexpr, gelu: tl.constexpr,
):  # fmt: skip
    """Normalises ``block`` rows.

    Args:
        x: Input, shape (rows, channels).
        y: The result, laid out alike.
        weight: Shape (channels,), or None.
        scale: Shape (channels,), float32, or None.
        inverse: Where 1 / sqrt(mean square + eps) goes, shape (rows,), float32; None for nowhere.
        rows: How many there are.
        eps: Added to the mean square.
        offset: Added to the weight.
        channels: How many there are, at most ``head + rest``.
        head: Channels of the first tile, a power of two.
        rest: Channels of the second, a power of two; 0 for none.
        block: Rows of a program, a power of two.
        gelu: Whether GELU follows.
    """
    row = tl.program_id(0) * block + tl.arange(0, block)
    c, place, inside = _row_tile(row, rows, 0, head, channels)
    values = _read(x + place, inside) * _factors(scale, c, channels)[None, :]
    total = tl.sum(values * values, axis=1)
    if rest:
        c2, place2, inside2 = _row_tile(row, rows, head, rest, channels)
        values2 = _read(x + place2, inside2) * _factors(scale, c2, channels)[None, :]
        total += tl.sum(values2 * values2, axis=1)
    factor = tl.rsqrt(total / channels + eps)
    if inverse is not None:
        tl.store(inverse + row, factor, mask=row < rows)
    _write(y + place, values * factor[:, None] * _gain(weight, c, channels, offset)[None, :], inside, gelu)
    if rest:
        _write(y + place2, values2 * factor[:, None] * _gain(weight, c2, channels, offset)[None, :], inside2, gelu)


@triton.jit
def rows_backward(
    grad, x, dx, weight, dw, scale, inverse, rows, offset,
    channels: tl.constexpr, head: tl.constexpr, rest: tl.constexpr, block: tl.constexpr, stages: tl.constexpr,
    gelu: tl.constexpr,
):  # fmt: skip
    """The gradients of every so many-th ``block`` of rows.

    Args:
        grad: Of the result, laid out as x.
        x: As in :func:`rows_forward`, and so on.
        dx: Where the gradient of x goes.
        weight: See there.
        dw: Where each program's part of the weight's gradient goes, shape (programs, channels), float32, or None.
        scale: See there.
        inverse: What :func:`rows_forward` put there.
        rows: See there.
        offset: See there.
        channels: See there.
        head: See there.
        rest: See there.
        block: See there.
        stages: How many blocks are under way at a time, being read or computed with.
        gelu: See there.
    """
    c = tl.arange(0, head)
    gain, factors = _gain(weight, c, channels, offset)[None, :], _factors(scale, c, channels)[None, :]
    parts = tl.zeros((block, head), tl.float32)
    if rest:
        c2 = head + tl.arange(0, rest)
        gain2, factors2 = _gain(weight, c2, channels, offset)[None, :], _factors(scale, c2, channels)[None, :]
        parts2 = tl.zeros((block, rest), tl.float32)
    for first in tl.range(tl.program_id(0) * block, rows, tl.num_programs(0) * block, num_stages=stages):
        row = first + tl.arange(0, block)
        factor = tl.load(inverse + row, mask=row < rows, other=0.0)[:, None]
        _, place, inside = _row_tile(row, rows, 0, head, channels)
        normal = _read(x + place, inside) * factors * factor
        g = _before_gelu(_read(grad + place, inside), normal * gain, gelu)
        parts += g * normal
        total = tl.sum(g * gain * normal, axis=1)
        if rest:
            _, place2, inside2 = _row_tile(row, rows, head, rest, channels)
            normal2 = _read(x + place2, inside2) * factors2 * factor
            g2 = _before_gelu(_read(grad + place2, inside2), normal2 * gain2, gelu)
            parts2 += g2 * normal2
            total += tl.sum(g2 * gain2 * normal2, axis=1)
        mean = (total / channels)[:, None]
        _write(dx + place, (g * gain - normal * mean) * factor * factors, inside, False)  # noqa: FBT003  # no names
        if rest:
            _write(dx + place2, (g2 * gain2 - normal2 * mean) * factor * factors2, inside2, False)  # noqa: FBT003
    if dw is not None:
        line = dw + tl.program_id(0).to(tl.int64) * channels
        tl.store(line + c, tl.sum(parts, axis=0), mask=c < channels)
        if rest:
            tl.store(line + c2, tl.sum(parts2, axis=0), mask=c2 < channels)


@triton.jit
def maps_forward(
    x, y, weight, scale, inverse, positions, eps, offset,
    channels: tl.constexpr, head: tl.constexpr, rest: tl.constexpr, block: tl.constexpr, gelu: tl.constexpr,
):  # fmt: skip
    """Normalises ``block`` positions of one batch item.

    Args:
        x: Input, shape (batch, channels, positions).
        y: The result, laid out alike.
        weight: As in :func:`rows_forward`.
        scale: See there.
        inverse: Where 1 / sqrt(mean square + eps) goes, shape (batch, positions), float32; None for nowhere.
        positions: How many there are in a batch item.
        eps: See there.
        offset: See there.
        channels: See there.
        head: See there.
        rest: See there.
        block: Positions of a program, a power of two.
        gelu: See there.
    """
    p = tl.program_id(0) * block + tl.arange(0, block)
    item = tl.program_id(1).to(tl.int64)
    c, place, inside = _map_tile(item, p, positions, 0, head, channels)
    values = _read(x + place, inside) * _factors(scale, c, channels)[:, None]
    total = tl.sum(values * values, axis=0)
    if rest:
        c2, place2, inside2 = _map_tile(item, p, positions, head, rest, channels)
        values2 = _read(x + place2, inside2) * _factors(scale, c2, channels)[:, None]
        total += tl.sum(values2 * values2, axis=0)
    factor = tl.rsqrt(total / channels + eps)
    if inverse is not None:
        tl.store(inverse + item * positions + p, factor, mask=p < positions)
    _write(y + place, values * factor[None, :] * _gain(weight, c, channels, offset)[:, None], inside, gelu)
    if rest:
        _write(y + place2, values2 * factor[None, :] * _gain(weight, c2, channels, offset)[:, None], inside2, gelu)


@triton.jit
def maps_backward(
    grad, x, dx, weight, dw, scale, inverse, items, positions, offset,
    channels: tl.constexpr, head: tl.constexpr, rest: tl.constexpr, block: tl.constexpr, stages: tl.constexpr,
    gelu: tl.constexpr,
):  # fmt: skip
    """The gradients of every so many-th ``block`` of positions.

    Args:
        grad: Of the result, laid out as x.
        x: As in :func:`maps_forward`, and so on.
        dx: Where the gradient of x goes.
        weight: See there.
        dw: Where each program's part of the weight's gradient goes, shape (programs, channels), float32, or None.
        scale: See there.
        inverse: What :func:`maps_forward` put there.
        items: The batch.
        positions: See there.
        offset: See there.
        channels: See there.
        head: See there.
        rest: See there.
        block: See there.
        stages: See :func:`rows_backward`.
        gelu: See there.
    """
    c = tl.arange(0, head)
    gain, factors = _gain(weight, c, channels, offset)[:, None], _factors(scale, c, channels)[:, None]
    parts = tl.zeros((head,), tl.float32)
    if rest:
        c2 = head + tl.arange(0, rest)
        gain2, factors2 = _gain(weight, c2, channels, offset)[:, None], _factors(scale, c2, channels)[:, None]
        parts2 = tl.zeros((rest,), tl.float32)
    blocks = tl.cdiv(positions, block)
    for number in tl.range(tl.program_id(0), items * blocks, tl.num_programs(0), num_stages=stages):
        item = (number // blocks).to(tl.int64)
        p = number % blocks * block + tl.arange(0, block)
        factor = tl.load(inverse + item * positions + p, mask=p < positions, other=0.0)[None, :]
        _, place, inside = _map_tile(item, p, positions, 0, head, channels)
        normal = _read(x + place, inside) * factors * factor
        g = _before_gelu(_read(grad + place, inside), normal * gain, gelu)
        parts += tl.sum(g * normal, axis=1)
        total = tl.sum(g * gain * normal, axis=0)
        if rest:
            _, place2, inside2 = _map_tile(item, p, positions, head, rest, channels)
            normal2 = _read(x + place2, inside2) * factors2 * factor
            g2 = _before_gelu(_read(grad + place2, inside2), normal2 * gain2, gelu)
            parts2 += tl.sum(g2 * normal2, axis=1)
            total += tl.sum(g2 * gain2 * normal2, axis=0)
        mean = (total / channels)[None, :]
        _write(dx + place, (g * gain - normal * mean) * factor * factors, inside, False)  # noqa: FBT003  # no names
        if rest:
            _write(dx + place2, (g2 * gain2 - normal2 * mean) * factor * factors2, inside2, False)  # noqa: FBT003
    if dw is not None:
        line = dw + tl.program_id(0).to(tl.int64) * channels
        tl.store(line + c, parts, mask=c < channels)
        if rest:
            tl.store(line + c2, parts2, mask=c2 < channels)


@triton.jit
def add_parts(parts, dw, count, channels, block: tl.constexpr, width: tl.constexpr, stages: tl.constexpr):
    """The weight's gradient from its parts.

    Args:
        parts: Shape (count, channels), float32.
        dw: Where it goes, shape (channels,).
        count: Of the parts.
        channels: How many there are.
        block: Parts that are read at a time, a power of two.
        width: Channels of a program, a power of two.
        stages: See :func:`rows_backward`.
    """
    c = tl.program_id(0) * width + tl.arange(0, width)
    total = tl.zeros((block, width), tl.float32)
    for first in tl.range(0, count, block, num_stages=stages):
        row = first + tl.arange(0, block)
        inside = (row < count)[:, None] & (c < channels)[None, :]
        total += tl.load(parts + row.to(tl.int64)[:, None] * channels + c[None, :], mask=inside, other=0.0)
    tl.store(dw + c, tl.sum(total, axis=0).to(dw.dtype.element_ty), mask=c < channels)


@triton.jit
def _row_tile(row, rows, first: tl.constexpr, block: tl.constexpr, channels: tl.constexpr):
    """Channels from ``first`` on of some rows: their numbers, where they lie, and which of them there are."""
    c = first + tl.arange(0, block)
    inside = (row < rows)[:, None] & (c < channels)[None, :]
    return c, row.to(tl.int64)[:, None] * channels + c[None, :], inside


@triton.jit
def _map_tile(item, p, positions, first: tl.constexpr, block: tl.constexpr, channels: tl.constexpr):
    """Channels from ``first`` on of some positions: their numbers, where they lie, and which of them there are."""
    c = first + tl.arange(0, block)
    inside = (c < channels)[:, None] & (p < positions)[None, :]
    return c, (item * channels + c)[:, None] * positions + p[None, :], inside


@triton.jit
def _read(place, inside):
    """In float32, zero outside."""
    return tl.load(place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _write(place, result, inside, gelu: tl.constexpr):
    """The result or its GELU, rounded once."""
    if gelu:
        result *= _gate(result)
    tl.store(place, result.to(place.dtype.element_ty), mask=inside)


@triton.jit
def _gate(z):
    """What GELU multiplies z by."""
    return 1.0 / (1.0 + tl.exp2((z * z * _CUBIC + _LINEAR) * z))


@triton.jit
def _before_gelu(g, z, gelu: tl.constexpr):
    """The gradient of z from that of its GELU, where there is one."""
    if gelu:
        gate = _gate(z)
        g *= gate + z * gate * (1.0 - gate) * (z * z * _THREE_CUBIC + 1.0) * _TWICE
    return g


@triton.jit
def _gain(weight, c, channels, offset):
    """What each channel is multiplied by."""
    gain = tl.full(c.shape, 1.0, tl.float32)
    if weight is not None:
        gain = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32) + offset
    return gain


@triton.jit
def _factors(scale, c, channels):
    """The power of two of each channel."""
    factors = tl.full(c.shape, 1.0, tl.float32)
    if scale is not None:
        factors = tl.load(scale + c, mask=c < channels, other=0.0)
    return factors
