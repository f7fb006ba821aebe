"""The kernels of :mod:`.norms_fused` for maps (batch, channels, positions).

A program holds all channels of some positions in registers, cut into two tiles of a power of two.
"""

# mypy: disable-error-code="possibly-undefined"
from __future__ import annotations

import triton
import triton.language as tl

from gemma_doctor.kernels.guards.triton_pieces import before_gelu, factors_of, gain_of, map_tile, read, write

__all__ = ["maps_backward", "maps_forward"]


@triton.jit
def maps_forward(
    x, y, weight, scale, inverse, positions, eps, offset,
    channels: tl.constexpr, head: tl.constexpr, rest: tl.constexpr, block: tl.constexpr, gelu: tl.constexpr,
):  # fmt: skip
    """Normalises ``block`` positions of one batch item.

    Args:
        x: Input, shape (batch, channels, positions).
        y: The result, laid out alike.
        weight: As in :func:`.triton_rows.rows_forward`.
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
    c, place, inside = map_tile(item, p, positions, 0, head, channels)
    values = read(x + place, inside) * factors_of(scale, c, channels)[:, None]
    total = tl.sum(values * values, axis=0)
    if rest:
        c2, place2, inside2 = map_tile(item, p, positions, head, rest, channels)
        values2 = read(x + place2, inside2) * factors_of(scale, c2, channels)[:, None]
        total += tl.sum(values2 * values2, axis=0)
    factor = tl.rsqrt(total / channels + eps)
    if inverse is not None:
        tl.store(inverse + item * positions + p, factor, mask=p < positions)
    write(y + place, values * factor[None, :] * gain_of(weight, c, channels, offset)[:, None], inside, gelu)
    if rest:
        write(y + place2, values2 * factor[None, :] * gain_of(weight, c2, channels, offset)[:, None], inside2, gelu)


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
        stages: See :func:`.triton_rows.rows_backward`.
        gelu: See there.
    """
    c = tl.arange(0, head)
    gain, factors = gain_of(weight, c, channels, offset)[:, None], factors_of(scale, c, channels)[:, None]
    parts = tl.zeros((head,), tl.float32)
    if rest:
        c2 = head + tl.arange(0, rest)
        gain2, factors2 = gain_of(weight, c2, channels, offset)[:, None], factors_of(scale, c2, channels)[:, None]
        parts2 = tl.zeros((rest,), tl.float32)
    blocks = tl.cdiv(positions, block)
    for number in tl.range(tl.program_id(0), items * blocks, tl.num_programs(0), num_stages=stages):
        item = (number // blocks).to(tl.int64)
        p = number % blocks * block + tl.arange(0, block)
        factor = tl.load(inverse + item * positions + p, mask=p < positions, other=0.0)[None, :]
        _, place, inside = map_tile(item, p, positions, 0, head, channels)
        normal = read(x + place, inside) * factors * factor
        g = before_gelu(read(grad + place, inside), normal * gain, gelu)
        parts += tl.sum(g * normal, axis=1)
        total = tl.sum(g * gain * normal, axis=0)
        if rest:
            _, place2, inside2 = map_tile(item, p, positions, head, rest, channels)
            normal2 = read(x + place2, inside2) * factors2 * factor
            g2 = before_gelu(read(grad + place2, inside2), normal2 * gain2, gelu)
            parts2 += tl.sum(g2 * normal2, axis=1)
            total += tl.sum(g2 * gain2 * normal2, axis=0)
        mean = (total / channels)[None, :]
        write(dx + place, (g * gain - normal * mean) * factor * factors, inside, False)  # noqa: FBT003  # no names
        if rest:
            write(dx + place2, (g2 * gain2 - normal2 * mean) * factor * factors2, inside2, False)  # noqa: FBT003
    if dw is not None:
        line = dw + tl.program_id(0).to(tl.int64) * channels
        tl.store(line + c, parts, mask=c < channels)
        if rest:
            tl.store(line + c2, parts2, mask=c2 < channels)
