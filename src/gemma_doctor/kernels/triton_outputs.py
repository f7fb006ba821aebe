"""The fused kernel of :mod:`.outputs_fused`: every statistic of a piece of a tensor in one pass.

Each program scans one piece of one tensor and adds what it finds to the tensor's line of a table, so that nothing
comes back to the host before it is asked for. What few pieces have (NaN, inf, values beyond float16's range, squares
beyond float32's) is looked for in a second pass over that piece alone, which the cache still holds in part.

Every value of the three dtypes is a float32, so one set of thresholds serves all. Floats are compared, and not their
bits: a GPU takes the magnitude for nothing and turns the answer into 1.0 or 0.0 in one instruction. And counters are
floats, since additions of floats leave the busiest units, which compare, alone. None comes near 2**24.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gemma_doctor.tensors import FP16_FIRST_INF

__all__ = [
    "BELOW_KEPT",
    "BELOW_NORMAL",
    "COLUMNS",
    "INF",
    "LEAST",
    "MOST",
    "NAN",
    "OVERFLOW",
    "SQUARES",
    "ZEROS",
    "scan",
]

NAN, INF, ZEROS, OVERFLOW, BELOW_KEPT, BELOW_NORMAL, MOST, LEAST, SQUARES, COLUMNS = map(tl.constexpr, range(10))
"""Columns of the table: counts, keys of the extremes, and the bits of a float64."""

_NORMAL, _UNDERFLOW = tl.constexpr(2.0**-14 - 2.0**-25), tl.constexpr(2.0**-25)
_FIRST_INF = tl.constexpr(FP16_FIRST_INF)
"""Smallest magnitude that rounds to a normal float16, largest that rounds to zero, smallest that rounds to inf."""

_TAME = tl.constexpr(2.0**-40)
"""Where the largest magnitude of a piece is smaller, float32 would lose squares that matter."""

_MOST_OFFSET, _LEAST_OFFSET = tl.constexpr((1 << 31) + 1), tl.constexpr(1 << 31)
"""What makes the keys of extremes positive, so that zeros in the table stand for nothing found."""


@triton.jit
def scan(work, table, table_of_floats, is_float16: tl.constexpr, rows: tl.constexpr, width: tl.constexpr):
    """Scans one piece.

    Args:
        work: Address, elements, line of the table for each piece; shape (pieces, 3), int64.
        table: Where the figures go, zeros at first; shape (tensors, COLUMNS), int64.
        table_of_floats: The same memory as float64.
        is_float16: Whether words of 16 bits are float16, and not bfloat16.
        rows: Loads in a tile.
        width: Words in a load of 16 bytes.
    """
    piece = work + tl.program_id(0).to(tl.int64) * 3
    address, count, line = tl.load(piece), tl.load(piece + 1).to(tl.int32), tl.load(piece + 2) * COLUMNS
    least, most, squares, below_normal, below_kept, zeros = _first_look(address, count, is_float16, rows, width)
    _count(table + line + BELOW_NORMAL, below_normal)
    _count(table + line + BELOW_KEPT, below_kept)
    _count(table + line + ZEROS, zeros)
    smallest, largest = tl.min(least, axis=0), tl.max(most, axis=0)
    total = tl.sum(squares.to(tl.float64), axis=0)
    peak = tl.maximum(tl.abs(smallest), tl.abs(largest))

    # NaN makes the sum NaN, and every comparison with it false.
    usual = (total < float("inf")) & (peak < _FIRST_INF) & ((peak >= _TAME) | (peak == 0.0))
    if not usual:
        least, most, exact, nan, inf, overflow = _second_look(address, count, is_float16, rows, width)
        _count(table + line + NAN, nan)
        _count(table + line + INF, inf)
        _count(table + line + OVERFLOW, overflow)
        smallest, largest, total = tl.min(least, axis=0), tl.max(most, axis=0), tl.sum(exact, axis=0)

    some = smallest <= largest
    tl.atomic_max(table + line + MOST, _key(largest) + _MOST_OFFSET, mask=some, sem="relaxed")
    tl.atomic_max(table + line + LEAST, -_key(smallest) + _LEAST_OFFSET, mask=some, sem="relaxed")
    tl.atomic_add(table_of_floats + line + SQUARES, total, mask=total > 0.0, sem="relaxed")


@triton.jit
def _first_look(address, count, is_float16: tl.constexpr, rows: tl.constexpr, width: tl.constexpr):
    """What every piece is asked: figures of each row of the tiles."""
    tile: tl.constexpr = rows * width
    lanes = _lanes(rows, width)
    least = tl.full((rows,), float("inf"), tl.float32)
    most = tl.full((rows,), float("-inf"), tl.float32)
    squares = tl.zeros((rows,), tl.float32)
    below_normal = tl.zeros((rows,), tl.float32)
    below_kept = tl.zeros((rows,), tl.float32)
    zeros = tl.zeros((rows,), tl.float32)
    whole = count // tile * tile
    for first in range(0, whole, tile):
        x = _values(tl.load(_aligned(address, width) + first + lanes), is_float16)
        least, most, squares, below_normal, below_kept, zeros = _look(
            x, lanes >= 0, least, most, squares, below_normal, below_kept, zeros
        )
    if whole < count:
        inside = whole + lanes < count
        x = _values(tl.load(_pointer(address, width) + whole + lanes, mask=inside, other=0), is_float16)
        least, most, squares, below_normal, below_kept, zeros = _look(
            x, inside, least, most, squares, below_normal, below_kept, zeros
        )
    return least, most, squares, below_normal, below_kept, zeros


@triton.jit
def _second_look(address, count, is_float16: tl.constexpr, rows: tl.constexpr, width: tl.constexpr):
    """What few pieces are asked. Squares in float64; extremes and squares of what is finite."""
    tile: tl.constexpr = rows * width
    lanes = _lanes(rows, width)
    least = tl.full((rows,), float("inf"), tl.float32)
    most = tl.full((rows,), float("-inf"), tl.float32)
    squares = tl.zeros((rows,), tl.float64)
    nan = tl.zeros((rows,), tl.float32)
    inf = tl.zeros((rows,), tl.float32)
    overflow = tl.zeros((rows,), tl.float32)
    whole = count // tile * tile
    for first in range(0, whole, tile):
        x = _values(tl.load(_aligned(address, width) + first + lanes), is_float16)
        least, most, squares, nan, inf, overflow = _look_again(x, lanes >= 0, least, most, squares, nan, inf, overflow)
    if whole < count:
        inside = whole + lanes < count
        x = _values(tl.load(_pointer(address, width) + whole + lanes, mask=inside, other=0), is_float16)
        least, most, squares, nan, inf, overflow = _look_again(x, inside, least, most, squares, nan, inf, overflow)
    return least, most, squares, nan, inf, overflow


@triton.jit
def _look(x, inside, least, most, squares, below_normal, below_kept, zeros):
    """The figures after one tile."""
    magnitude = tl.where(inside, tl.abs(x), 1.0)
    least = tl.minimum(least, tl.min(tl.where(inside, x, float("inf")), axis=1))
    most = tl.maximum(most, tl.max(tl.where(inside, x, float("-inf")), axis=1))
    squares += tl.sum(tl.where(inside, x * x, 0.0), axis=1)
    below_normal += tl.sum(tl.where(magnitude < _NORMAL, 1.0, 0.0), axis=1)
    below_kept += tl.sum(tl.where(magnitude <= _UNDERFLOW, 1.0, 0.0), axis=1)
    zeros += tl.sum(tl.where(magnitude == 0.0, 1.0, 0.0), axis=1)
    return least, most, squares, below_normal, below_kept, zeros


@triton.jit
def _look_again(x, inside, least, most, squares, nan, inf, overflow):
    """The rarer figures after one tile."""
    magnitude = tl.where(inside, tl.abs(x), 0.0)
    finite = magnitude < float("inf")
    wide = tl.where(inside & finite, x, 0.0).to(tl.float64)
    least = tl.minimum(least, tl.min(tl.where(inside & finite, x, float("inf")), axis=1))
    most = tl.maximum(most, tl.max(tl.where(inside & finite, x, float("-inf")), axis=1))
    squares += tl.sum(wide * wide, axis=1)
    nan += tl.sum(tl.where(magnitude <= float("inf"), 0.0, 1.0), axis=1)
    inf += tl.sum(tl.where(magnitude == float("inf"), 1.0, 0.0), axis=1)
    overflow += tl.sum(tl.where((magnitude >= _FIRST_INF) & finite, 1.0, 0.0), axis=1)
    return least, most, squares, nan, inf, overflow


@triton.jit
def _lanes(rows: tl.constexpr, width: tl.constexpr):
    """Offsets of a tile's words: the words of one load beside each other."""
    return tl.arange(0, rows)[:, None] * width + tl.arange(0, width)[None, :]


@triton.jit
def _pointer(address, width: tl.constexpr):
    """A pointer to words, so many to 16 bytes."""
    if width == tl.constexpr(4):  # noqa: SIM108  # Triton has no such expression for two types
        words = address.to(tl.pointer_type(tl.int32))
    else:
        words = address.to(tl.pointer_type(tl.int16))
    return words


@triton.jit
def _aligned(address, width: tl.constexpr):
    """A pointer to words at a multiple of 16 bytes."""
    return tl.multiple_of(_pointer(tl.multiple_of(address, 16), width), 16)


@triton.jit
def _values(words, is_float16: tl.constexpr):
    """The float32 of each word: a float16, a bfloat16 (the top half of a float32), or a float32."""
    if is_float16:
        x = words.to(tl.float16, bitcast=True).to(tl.float32)
    elif words.dtype == tl.int16:
        x = (words.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        x = words.to(tl.float32, bitcast=True)
    return x


@triton.jit
def _key(x):
    """An int64 that orders as the floats do, from -2**31 to 2**31 - 1."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _count(place, counters):
    """Adds counters up, and the sum to the table, where there is one."""
    number = tl.sum(counters, axis=0).to(tl.int64)
    tl.atomic_add(place, number, mask=number > 0, sem="relaxed")
