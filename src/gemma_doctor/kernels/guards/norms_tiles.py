"""The tiles in which the fused norms go over a tensor of some shape and layout.

The tables were chosen by measuring on an H100 (``benchmarks/gpu_norm_tiles.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from gemma_doctor.kernels.guards import triton_norms
from gemma_doctor.kernels.guards.launching import Launch

__all__ = ["KERNELS", "Plan", "adding", "plan", "tiled", "tiles"]

_MOST_CHANNELS = 8192
"""A program holds all channels of a position: more would not fit the registers."""

_ENOUGH = 264
"""Programs that fill a GPU: two for each of an H100's multiprocessors."""

_WARPS = 2112
"""Warps that a GPU has registers for where each thread takes 128 of them: 16 for each of an H100's multiprocessors."""

_LANES = 32
"""Threads of a warp."""

_WIDTHS = (64, 32, 16, 8)
"""Positions of a program over maps: the fewer, the more programs. A thread reads 8 of 16 bits at once."""

_MANY = 2048
"""Channels of a row from which on a program and its threads take more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a norm goes over tensors of one shape and layout.

    Attributes:
        channels: How many there are.
        positions: How many there are, in all.
        forward: The kernel that normalises.
        backward: That of the gradients.
        adding: The one that adds up the parts of the weight's gradient, one of each program of the last.
    """

    channels: int
    positions: int
    forward: Launch
    backward: Launch
    adding: Launch


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
    return Plan(channels, rows, forward, backward, adding(backward))


def _rows_launch(rows: int, channels: int, *, backward: bool) -> Launch:
    """Each thread holds so many elements of a tensor that the registers suffice, and warps are many."""
    elements, each = _BACKWARD if backward else _FORWARD[channels > _MANY]
    block = max(1, elements // _power(channels))
    return tiled((rows, channels), block, _warps(channels * block, each), _STAGES if backward else 0)


_FORWARD = ((2048, 16), (4096, 32))
"""Elements of a program and of each thread, for few channels and for many."""

_BACKWARD = (2048, 16)
"""The same in the backward pass."""

_STAGES = 2
"""Blocks under way at a time there."""


def _over_maps(items: int, channels: int, positions: int) -> Plan:
    """Where a channel lies after the other."""
    forward, backward = (_maps_launch(items, channels, positions, backward=backward) for backward in (False, True))
    return Plan(channels, items * positions, forward, backward, adding(backward))


def _maps_launch(items: int, channels: int, positions: int, *, backward: bool) -> Launch:
    """As many positions as leave enough programs, and no more elements than the registers hold."""
    elements, each = _BACKWARD_MAPS if backward else _FORWARD_MAPS
    fitting = (
        width for width in _WIDTHS if -(-positions // width) * items >= _ENOUGH and width * _power(channels) <= elements
    )
    width = next(fitting, _WIDTHS[-1])
    return tiled((items, channels, positions), width, _warps(channels * width, each), _STAGES if backward else 0)


_FORWARD_MAPS, _BACKWARD_MAPS = (16384, 32), (16384, 32)
"""Elements of a program, at most, and of each thread."""


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


def adding(backward: Launch) -> Launch:
    """Some channels to a program, so that programs are many."""
    parts, channels = backward.grid[0], backward.tile[0]
    block, width = 256, 16
    return Launch(triton_norms.add_parts, (-(-channels // width), 1, 1), (block, width, 3), 8, (parts, channels))


KERNELS: dict[tuple[bool, bool], Any] = {
    (False, False): triton_norms.rows_forward,
    (False, True): triton_norms.rows_backward,
    (True, False): triton_norms.maps_forward,
    (True, True): triton_norms.maps_backward,
}
"""By whether a channel lies after the other, and whether it is that of the gradients."""


def tiles(channels: int) -> tuple[int, int]:
    """Two powers of two that hold so many channels, the second 0 where the first does."""
    head = _power(channels + 1) // 2
    return head, _power(channels - head) if channels > head else 0


def _warps(elements: int, each: int) -> int:
    """A power of two."""
    return min(16, max(1, _power(elements // (_LANES * each))))


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()
