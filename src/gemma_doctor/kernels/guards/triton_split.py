"""The kernels of :mod:`.norms_fused` for maps (batch, channels, positions) of more channels than registers hold.

Some programs share a block of positions: each adds up its share of the channels, and when all have, as many others read
it once more, most of it from the cache: they begin where the first ended. A share is a multiple of ``step``.
"""

# mypy: disable-error-code="possibly-undefined"
from __future__ import annotations

import triton
import triton.language as tl

from gemma_doctor.kernels.guards.triton_pieces import before_gelu, factors_of, gain_of, map_tile, read, write

__all__ = ["split_backward", "split_forward", "split_products", "split_squares"]


@triton.jit
def split_squares(
    x, scale, sums, channels, positions, share,
    step: tl.constexpr, block: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """Adds up the squares of ``share`` channels of ``block`` positions.

    Args:
        x: Input, shape (batch, channels, positions).
        scale: Shape (channels,), float32, or None.
        sums: Where they go, shape (shares, batch, positions), float32.
        channels: How many there are.
        positions: How many there are in a batch item.
        share: Channels of a program.
        step: Channels that are read at a time, a power of two.
        block: Positions of a program, a power of two.
        stages: Steps under way at a time.
    """
    p = tl.program_id(0) * block + tl.arange(0, block)
    item = tl.program_id(2).to(tl.int64)
    squares = tl.zeros((step, block), tl.float32)
    first = tl.program_id(1) * share
    for start in tl.range(first, tl.minimum(first + share, channels), step, num_stages=stages):
        c, place, inside = map_tile(item, p, positions, start, step, channels)
        values = read(x + place, inside) * factors_of(scale, c, channels)[:, None]
        squares += values * values
    line = (tl.program_id(1) * tl.num_programs(2) + item) * positions
    tl.store(sums + line + p, tl.sum(squares, axis=0), mask=p < positions)


@triton.jit
def split_forward(
    x, y, weight, scale, sums, inverse, channels, positions, share, eps, offset,
    step: tl.constexpr, block: tl.constexpr, stages: tl.constexpr, gelu: tl.constexpr,
):  # fmt: skip
    """Normalises ``share`` channels of ``block`` positions.

    Args:
        x: As in :func:`split_squares`, and so on.
        y: The result, laid out as x.
        weight: Shape (channels,), or None.
        scale: See there.
        sums: What :func:`split_squares` put there.
        inverse: Where 1 / sqrt(mean square + eps) goes, shape (batch, positions), float32; None for nowhere.
        channels: See there.
        positions: See there.
        share: See there.
        eps: Added to the mean square.
        offset: Added to the weight.
        step: See there.
        block: See there.
        stages: See there.
        gelu: Whether GELU follows.
    """
    p, part, item = _backwards(block)
    total = _total(sums, p, item, positions)
    factor = tl.rsqrt(total / channels + eps)
    if inverse is not None:
        tl.store(inverse + item * positions + p, factor, mask=p < positions)  # every share writes the same
    first = part * share
    for start in tl.range(first, tl.minimum(first + share, channels), step, num_stages=stages):
        c, place, inside = map_tile(item, p, positions, start, step, channels)
        values = read(x + place, inside) * factors_of(scale, c, channels)[:, None]
        write(y + place, values * factor[None, :] * gain_of(weight, c, channels, offset)[:, None], inside, gelu)


@triton.jit
def split_products(
    grad, x, weight, scale, inverse, sums, dw, channels, positions, share, offset,
    step: tl.constexpr, block: tl.constexpr, stages: tl.constexpr, gelu: tl.constexpr,
):  # fmt: skip
    """Adds up the products of ``share`` channels of ``block`` positions and their gradients.

    Args:
        grad: Of the result, laid out as x.
        x: As in :func:`split_forward`, and so on.
        weight: See there.
        scale: See there.
        inverse: What :func:`split_forward` put there.
        sums: Where the products go, shape (shares, batch, positions), float32.
        dw: Where each block's part of the weight's gradient goes, shape (batch * blocks, channels), float32, or None.
        channels: See there.
        positions: See there.
        share: See there.
        offset: See there.
        step: See there.
        block: See there.
        stages: See there.
        gelu: See there.
    """
    p = tl.program_id(0) * block + tl.arange(0, block)
    item = tl.program_id(2).to(tl.int64)
    factor = tl.load(inverse + item * positions + p, mask=p < positions, other=0.0)[None, :]
    products = tl.zeros((step, block), tl.float32)
    first = tl.program_id(1) * share
    for start in tl.range(first, tl.minimum(first + share, channels), step, num_stages=stages):
        c, place, inside = map_tile(item, p, positions, start, step, channels)
        normal = read(x + place, inside) * factors_of(scale, c, channels)[:, None] * factor
        gain = gain_of(weight, c, channels, offset)[:, None]
        g = before_gelu(read(grad + place, inside), normal * gain, gelu)
        products += g * gain * normal
        if dw is not None:
            part = (item * tl.num_programs(0) + tl.program_id(0)) * channels
            tl.store(dw + part + c, tl.sum(g * normal, axis=1), mask=c < channels)
    line = (tl.program_id(1) * tl.num_programs(2) + item) * positions
    tl.store(sums + line + p, tl.sum(products, axis=0), mask=p < positions)


@triton.jit
def split_backward(
    grad, x, dx, weight, scale, inverse, sums, channels, positions, share, offset,
    step: tl.constexpr, block: tl.constexpr, stages: tl.constexpr, gelu: tl.constexpr,
):  # fmt: skip
    """The gradients of ``share`` channels of ``block`` positions.

    Args:
        grad: As in :func:`split_products`, and so on.
        x: See there.
        dx: Where the gradient of x goes.
        weight: See there.
        scale: See there.
        inverse: See there.
        sums: What :func:`split_products` put there.
        channels: See there.
        positions: See there.
        share: See there.
        offset: See there.
        step: See there.
        block: See there.
        stages: See there.
        gelu: See there.
    """
    p, part, item = _backwards(block)
    mean = (_total(sums, p, item, positions) / channels)[None, :]
    factor = tl.load(inverse + item * positions + p, mask=p < positions, other=0.0)[None, :]
    first = part * share
    for start in tl.range(first, tl.minimum(first + share, channels), step, num_stages=stages):
        c, place, inside = map_tile(item, p, positions, start, step, channels)
        factors = factors_of(scale, c, channels)[:, None]
        normal = read(x + place, inside) * factors * factor
        gain = gain_of(weight, c, channels, offset)[:, None]
        g = before_gelu(read(grad + place, inside), normal * gain, gelu) * gain
        write(dx + place, (g - normal * mean) * factor * factors, inside, False)  # noqa: FBT003  # no names


@triton.jit
def _backwards(block: tl.constexpr):
    """This program's positions, its share, and its batch item, the last first."""
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    part = tl.num_programs(1) - 1 - tl.program_id(1)
    item = (tl.num_programs(2) - 1 - tl.program_id(2)).to(tl.int64)
    return number * block + tl.arange(0, block), part, item


@triton.jit
def _total(sums, p, item, positions):
    """The sums of all shares."""
    total = tl.zeros(p.shape, tl.float32)
    for part in range(tl.num_programs(1)):
        line = (part * tl.num_programs(2) + item) * positions
        total += tl.load(sums + line + p, mask=p < positions, other=0.0)
    return total
