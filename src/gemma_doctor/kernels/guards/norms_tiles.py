"""The tiles in which the fused norms go over a tensor of some shape and layout.

The tables were chosen by measuring on an H100 (``benchmarks/gpu_norm_tiles.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from gemma_doctor.kernels.guards import triton_maps, triton_rows, triton_split
from gemma_doctor.kernels.guards.launching import Launch

__all__ = ["KERNELS", "SPLIT_KERNELS", "Plan", "Split", "adding", "plan", "split", "tiled", "tiles", "whole"]

_MOST_CHANNELS = 8192
"""A program holds all channels of a position: more would not fit the registers."""

_ENOUGH = 264
"""Programs that fill a GPU: two for each of an H100's multiprocessors."""

_WARPS = 2112
"""Warps that a GPU has registers for where each thread takes 128 of them: 16 for each of an H100's multiprocessors."""

_LANES = 32
"""Threads of a warp."""

_FEW, _MANY = 256, 2048
"""Channels of rows from which on a program takes more, and of maps from which on programs share them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a norm goes over tensors of one shape and layout.

    Attributes:
        channels: How many there are.
        positions: How many there are, in all.
        forward: The kernel that normalises.
        backward: That of the gradients.
        adding: The one that adds up the parts of the weight's gradient.
        parts: How many of these there are.
        shares: Into how many the channels are divided, if they are.
        before: Then the kernels that add up squares, before the first, and products, before the second.
    """

    channels: int
    positions: int
    forward: Launch
    backward: Launch
    adding: Launch
    parts: int
    shares: int = 0
    before: tuple[Launch, Launch] | None = None


@cache
def plan(shape: torch.Size, strides: tuple[int, ...], dim: int) -> Plan | None:
    """How to go through a tensor; None if it is empty, or has too many channels or gaps."""
    count, channels = math.prod(shape), shape[dim]
    if not count or channels > _MOST_CHANNELS:
        return None
    last = dim == -1 or len(shape) == dim + 1
    order = [*range(len(shape))] if last else [axis for axis in range(len(shape)) if axis != dim] + [dim]
    if _lies(shape, strides, order):
        return _over_rows(count // channels, channels)
    if dim == 1 and _lies(shape, strides, [*range(len(shape))]):
        return _over_maps(shape[0], channels, math.prod(shape[2:]))
    return None


def _lies(shape: torch.Size, strides: tuple[int, ...], order: list[int]) -> bool:
    """Whether a tensor fills memory without gaps, its axes in that order from the widest steps to the smallest."""
    step = 1
    for axis in reversed(order):
        if shape[axis] != 1 and strides[axis] != step:
            return False
        step *= shape[axis]
    return True


def _over_rows(rows: int, channels: int) -> Plan:
    """Where channels come last."""
    forward, backward = (_rows_launch(rows, channels, backward=backward) for backward in (False, True))
    return whole(channels, rows, forward, backward)


def _rows_launch(rows: int, channels: int, *, backward: bool) -> Launch:
    """Each thread holds so many elements of a tensor that the registers suffice, and warps are many."""
    few, elements, each = _BACKWARD if backward else _FORWARD[channels > _FEW]
    block = _floor(max(1, elements // channels))
    warps = max(few, _warps(sum(tiles(channels)) * block, each))
    return tiled((rows, channels), block, warps, _stages(_ROW_STAGES, block, channels) if backward else 0)


_FORWARD = ((4, 2048, 16), (4, 5120, 32))
"""Fewest warps; elements of a program, at most, if it holds several rows; and of each thread, about. For few channels,
and for many."""

_BACKWARD = (2, 1280, 16)
"""The same in the backward pass."""

_ROW_STAGES, _MAP_STAGES = 3, 2
"""Blocks under way at a time there, at most."""


def _stages(most: int, block: int, channels: int) -> int:
    """As many as there is shared memory for: 64 KiB, of the 99 of the smallest GPU that Triton supports.

    All blocks but the one that is computed with lie there, of two tensors and in float32 at worst.
    """
    return min(most, 1 + (1 << 16) // (8 * block * sum(tiles(channels))))


def _over_maps(items: int, channels: int, positions: int) -> Plan:
    """Where a channel lies after the other."""
    if channels > _MANY:
        return split((items, channels, positions), _SPLIT, _SPLIT)
    forward, backward = (_maps_launch(items, channels, positions, backward=backward) for backward in (False, True))
    return whole(channels, items * positions, forward, backward)


def _maps_launch(items: int, channels: int, positions: int, *, backward: bool) -> Launch:
    """As many positions as leave enough programs, and no more elements than the registers hold."""
    held = sum(tiles(channels))
    fitting = (width for width in _WIDTHS if -(-positions // width) * items >= _ENOUGH and width * held <= _HELD)
    least = next(width for width in _LEAST if width * held <= _MOST_HELD[backward] or width == _LEAST[-1])
    width = next(fitting, least)
    warps = _warps(width * held, _EACH)
    if not backward and width * held <= _MOST_HELD[True]:
        warps = min(warps, 8)
    stages = _stages(_MAP_STAGES, width, channels) if backward else 0
    return tiled((items, channels, positions), width, warps, stages)


_WIDTHS, _LEAST = (64, 32), (16, 8)
"""Positions of a program over maps: the fewer, the more programs, but memory delivers those of 32 bytes at once."""

_HELD, _EACH = 8192, 32
"""Elements of a program, at most, if it has more positions than the least, and of each thread, about."""

_MOST_HELD = {False: 32768, True: 20480}
"""Elements of a program, at most, forward and backward."""


def tiled(shape: tuple[int, ...], block: int, warps: int, stages: int = 0) -> Launch:
    """A program for each block of positions, or in the backward pass for several: it adds the weight's gradient up.

    Args:
        shape: Rows and channels; or the batch, channels and positions of maps.
        block: Positions of a program at a time.
        warps: Of a program.
        stages: Blocks of a program that are under way at a time in the backward pass; 0 for the forward pass.
    """
    maps, backward = len(shape) == len(("items", "channels", "positions")), stages > 0
    items, channels, positions = shape if maps else (1, shape[1], shape[0])
    grid, tile = (-(-positions // block), items, 1), (channels, *tiles(channels), block)
    if not backward:
        return Launch(KERNELS[maps, backward], grid, tile, warps, (positions,))
    several = (min(math.prod(grid), _WARPS // warps), 1, 1)
    numbers = (items, positions) if maps else (positions,)
    return Launch(KERNELS[maps, backward], several, (*tile, stages), warps, numbers)


def whole(channels: int, positions: int, forward: Launch, backward: Launch) -> Plan:
    """A plan of programs that hold all channels."""
    parts = backward.grid[0]
    return Plan(channels, positions, forward, backward, adding(parts, channels), parts)


def adding(parts: int, channels: int) -> Launch:
    """Some channels to a program, so that programs are many."""
    block, width = 256, 16
    return Launch(triton_rows.add_parts, (-(-channels // width), 1, 1), (block, width, 3), 8, (parts, channels))


@dataclass(frozen=True, slots=True)
class Split:
    """How programs share the channels.

    Attributes:
        block: Positions of a program.
        programs: About how many there are to be.
        stages: Steps of a program under way at a time.
        step: Channels of each.
        warps: Of a program.
    """

    block: int
    programs: int
    stages: int
    step: int = 32
    warps: int = 4


_SPLIT = Split(64, 1056, 3)


def split(shape: tuple[int, int, int], forward: Split, backward: Split) -> Plan:
    """A plan of programs that share the channels.

    Args:
        shape: The batch, channels and positions of maps.
        forward: How the programs of the forward pass do.
        backward: Those of the backward pass.
    """
    items, channels, positions = shape
    squares, normalising = _shared(shape, forward, backward=False)
    products, gradients = _shared(shape, backward, backward=True)
    parts = products.grid[0] * items
    shares = max(squares.grid[1], products.grid[1])
    before = squares, products
    return Plan(channels, items * positions, normalising, gradients, adding(parts, channels), parts, shares, before)


def _shared(shape: tuple[int, int, int], how: Split, *, backward: bool) -> tuple[Launch, Launch]:
    """The kernel that adds up, and the one that writes."""
    items, channels, positions = shape
    blocks = -(-positions // how.block)
    steps = -(-channels // how.step)
    share = max(1, steps * blocks * items // how.programs) * how.step
    grid, tile = (blocks, -(-channels // share), items), (how.step, how.block, how.stages)
    first, second = (
        Launch(kernel, grid, tile, how.warps, (channels, positions, share)) for kernel in SPLIT_KERNELS[backward]
    )
    return first, second


KERNELS: dict[tuple[bool, bool], Any] = {
    (False, False): triton_rows.rows_forward,
    (False, True): triton_rows.rows_backward,
    (True, False): triton_maps.maps_forward,
    (True, True): triton_maps.maps_backward,
}
"""By whether a channel lies after the other, and whether it is that of the gradients."""

SPLIT_KERNELS: dict[bool, tuple[Any, Any]] = {
    False: (triton_split.split_squares, triton_split.split_forward),
    True: (triton_split.split_products, triton_split.split_backward),
}
"""By whether they are those of the gradients: the one that adds up, and the one that writes."""


def tiles(channels: int) -> tuple[int, int]:
    """Two powers of two that hold so many channels, the second 0 where the first does."""
    head = _power(channels + 1) // 2
    return head, _power(channels - head) if channels > head else 0


def _warps(elements: int, each: int) -> int:
    """A power of two."""
    return _floor(min(16, max(1, elements // (_LANES * each))))


def _floor(number: int) -> int:
    """The largest power of two that is no larger."""
    return 1 << (number.bit_length() - 1)


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()
