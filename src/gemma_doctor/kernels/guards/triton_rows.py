"""The kernels of :mod:`.norms_fused` for channels that lie beside each other.

A program holds all channels of some positions in registers, cut into two tiles of a power of two (640 = 512 + 128), so
that few lanes idle.
"""

# mypy: disable-error-code="possibly-undefined"
from __future__ import annotations

import triton
import triton.language as tl

from gemma_doctor.kernels.guards.triton_pieces import before_gelu, factors_of, gain_of, read, write

__all__ = ["add_parts", "rows_backward", "rows_forward"]


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
    values = read(x + place, inside) * factors_of(scale, c, channels)[None, :]
    total = tl.sum(values * values, axis=1)
    if rest:
        c2, place2, inside2 = _row_tile(row, rows, head, rest, channels)
        values2 = read(x + place2, inside2) * factors_of(scale, c2, channels)[None, :]
        total += tl.sum(values2 * values2, axis=1)
    factor = tl.rsqrt(total / channels + eps)
    if inverse is not None:
        tl.store(inverse + row, factor, mask=row < rows)
    write(y + place, values * factor[:, None] * gain_of(weight, c, channels, offset)[None, :], inside, gelu)
    if rest:
        write(y + place2, values2 * factor[:, None] * gain_of(weight, c2, channels, offset)[None, :], inside2, gelu)


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
    gain, factors = gain_of(weight, c, channels, offset)[None, :], factors_of(scale, c, channels)[None, :]
    parts = tl.zeros((block, head), tl.float32)
    if rest:
        c2 = head + tl.arange(0, rest)
        gain2, factors2 = gain_of(weight, c2, channels, offset)[None, :], factors_of(scale, c2, channels)[None, :]
        parts2 = tl.zeros((block, rest), tl.float32)
    for first in tl.range(tl.program_id(0) * block, rows, tl.num_programs(0) * block, num_stages=stages):
        row = first + tl.arange(0, block)
        factor = tl.load(inverse + row, mask=row < rows, other=0.0)[:, None]
        _, place, inside = _row_tile(row, rows, 0, head, channels)
        normal = read(x + place, inside) * factors * factor
        g = before_gelu(read(grad + place, inside), normal * gain, gelu)
        parts += g * normal
        total = tl.sum(g * gain * normal, axis=1)
        if rest:
            _, place2, inside2 = _row_tile(row, rows, head, rest, channels)
            normal2 = read(x + place2, inside2) * factors2 * factor
            g2 = before_gelu(read(grad + place2, inside2), normal2 * gain2, gelu)
            parts2 += g2 * normal2
            total += tl.sum(g2 * gain2 * normal2, axis=1)
        mean = (total / channels)[:, None]
        write(dx + place, (g * gain - normal * mean) * factor * factors, inside, False)  # noqa: FBT003  # no names
        if rest:
            write(dx + place2, (g2 * gain2 - normal2 * mean) * factor * factors2, inside2, False)  # noqa: FBT003
    if dw is not None:
        line = dw + tl.program_id(0).to(tl.int64) * channels
        tl.store(line + c, tl.sum(parts, axis=0), mask=c < channels)
        if rest:
            tl.store(line + c2, tl.sum(parts2, axis=0), mask=c2 < channels)


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
