"""The fused kernel of :mod:`.outputs_fused`: every statistic of a piece of a tensor in one pass.

Each program scans one piece of one tensor and adds what it finds to the tensor's line of a table, so that nothing
comes back to the host before it is asked for. What few pieces have (NaN, inf, values beyond float16's range, squares
beyond float32's) is looked for in a second pass over that piece alone, which the cache still holds in part.

Memory is read as words of 32 bits, 16 bytes to a thread: one float32, or two 16-bit floats. Each lane keeps its own
figures, and lanes are added up once, at the end. Magnitudes order as their bits do, so two 16-bit floats are compared
by one addition: ``(word & 0x7fff7fff) + (0x8000 - threshold) * 0x10001`` has the top bit of each half set where that
half is not below the threshold, and no half carries into the other.
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

_FIRST_INF = tl.constexpr(FP16_FIRST_INF)
"""Smallest magnitude that rounds to inf in float16."""

_TAME = tl.constexpr(2.0**-40)
"""Where the largest magnitude of a piece is smaller, float32 would lose squares that matter."""

_MOST_OFFSET, _LEAST_OFFSET = tl.constexpr((1 << 31) + 1), tl.constexpr(1 << 31)
"""What makes the keys of extremes positive, so that zeros in the table stand for nothing found."""

_HALVES, _TOPS, _ONES = tl.constexpr(0x7FFF7FFF), tl.constexpr(0x10001), tl.constexpr(0x00010001)
"""The magnitudes of two 16-bit floats, what repeats a number in both halves, and the lowest bit of each."""


@triton.jit(do_not_specialize_on_alignment=["work", "table", "table_of_floats"])
def scan(  # noqa: PLR0915  # one loop over the words, and one over the rest
    work, table, table_of_floats,
    packed: tl.constexpr, is_float16: tl.constexpr, normal: tl.constexpr, kept: tl.constexpr,
    words: tl.constexpr, loads: tl.constexpr,
):  # fmt: skip
    """Scans one piece.

    Args:
        work: Address, elements, line of the table for each piece; shape (pieces, 3), int64.
        table: Where the figures go, zeros at first; shape (tensors, COLUMNS), int64.
        table_of_floats: The same memory as float64.
        packed: Whether a word holds two floats of 16 bits, and not one of 32.
        is_float16: Whether floats of 16 bits are float16, and not bfloat16.
        normal: Bits of the smallest magnitude that rounds to a normal float16.
        kept: Bits of the smallest magnitude that does not round to zero in float16.
        words: Lanes; each takes one word of a tile.
        loads: Tiles that are read before the first of them is looked at.
    """
    piece = work + tl.program_id(0).to(tl.int64) * 3
    address, count, line = tl.load(piece), tl.load(piece + 1).to(tl.int32), tl.load(piece + 2) * COLUMNS
    tile: tl.constexpr = words * (2 if packed else 1)
    lanes = tl.arange(0, words)
    least = tl.full((words,), float("inf"), tl.float32)
    most = tl.full((words,), float("-inf"), tl.float32)
    squares = tl.zeros((words,), tl.float32)
    others = tl.zeros((words,), tl.float32)
    normals = tl.zeros((words,), tl.int32)
    keeps = tl.zeros((words,), tl.int32)
    nonzeros = tl.zeros((words,), tl.int32)
    whole = count // (tile * loads) * loads
    pointer = tl.multiple_of(tl.multiple_of(address, 16).to(tl.pointer_type(tl.int32)), 16) + lanes
    for first in range(0, whole, loads):
        read = ()
        for load in tl.static_range(loads):
            read = read + (tl.load(pointer + (first + load) * words),)  # type: ignore[assignment]  # noqa: RUF005  # Triton unpacks nothing
        for load in tl.static_range(loads):
            low, high = _values(read[load], packed, is_float16)
            least = tl.minimum(least, tl.minimum(low, high))
            most = tl.maximum(most, tl.maximum(low, high))
            squares += low * low
            if packed:
                others += high * high
            normals += _at_least(read[load], normal, packed)
            if not is_float16:
                keeps += _at_least(read[load], kept, packed)
            nonzeros += _at_least(read[load], 1, packed)
    for first in range(whole * tile, count, tile):
        word, inside, inside_high = _rest(address, first, count, lanes, packed)
        low, high = _values(word, packed, is_float16)
        least = tl.minimum(least, tl.where(inside, low, float("inf")))
        most = tl.maximum(most, tl.where(inside, low, float("-inf")))
        squares += tl.where(inside, low * low, 0.0)
        if packed:
            least = tl.minimum(least, tl.where(inside_high, high, float("inf")))
            most = tl.maximum(most, tl.where(inside_high, high, float("-inf")))
            others += tl.where(inside_high, high * high, 0.0)
        normals += _at_least(word, normal, packed)
        keeps += _at_least(word, kept, packed)
        nonzeros += _at_least(word, 1, packed)
    _count(table + line + BELOW_NORMAL, count - _sum(normals, packed))
    if is_float16:
        _count(table + line + BELOW_KEPT, count - _sum(nonzeros, packed))
    else:
        _count(table + line + BELOW_KEPT, count - _sum(keeps, packed))
    _count(table + line + ZEROS, count - _sum(nonzeros, packed))
    smallest, largest = tl.min(least, axis=0), tl.max(most, axis=0)
    total = tl.sum(squares.to(tl.float64) + others.to(tl.float64), axis=0)
    peak = tl.maximum(tl.abs(smallest), tl.abs(largest))

    # NaN makes the sum NaN, and every comparison with it false.
    usual = (total < float("inf")) & (peak < _FIRST_INF) & ((peak >= _TAME) | (peak == 0.0))
    if not usual:
        smallest, largest, total = _second_look(address, count, table + line, packed, is_float16, words)
    some = smallest <= largest
    tl.atomic_max(table + line + MOST, _key(largest) + _MOST_OFFSET, mask=some, sem="relaxed")
    tl.atomic_max(table + line + LEAST, -_key(smallest) + _LEAST_OFFSET, mask=some, sem="relaxed")
    tl.atomic_add(table_of_floats + line + SQUARES, total, mask=total > 0.0, sem="relaxed")


@triton.jit
def _second_look(address, count, line, packed: tl.constexpr, is_float16: tl.constexpr, words: tl.constexpr):
    """What few pieces are asked. Squares in float64; extremes and squares of what is finite."""
    tile: tl.constexpr = words * (2 if packed else 1)
    lanes = tl.arange(0, words)
    least = tl.full((words,), float("inf"), tl.float32)
    most = tl.full((words,), float("-inf"), tl.float32)
    squares = tl.zeros((words,), tl.float64)
    nan = tl.zeros((words,), tl.int32)
    inf = tl.zeros((words,), tl.int32)
    overflow = tl.zeros((words,), tl.int32)
    whole = count // tile * tile
    pointer = tl.multiple_of(tl.multiple_of(address, 16).to(tl.pointer_type(tl.int32)), 16) + lanes
    for first in range(0, count, tile):
        if first < whole:
            word = tl.load(pointer + first // (tile // words))
            inside = lanes >= 0
            inside_high = inside
        else:
            word, inside, inside_high = _rest(address, first, count, lanes, packed)
        low, high = _values(word, packed, is_float16)
        least, most, squares, nan, inf, overflow = _look_again(low, inside, least, most, squares, nan, inf, overflow)
        if packed:
            least, most, squares, nan, inf, overflow = _look_again(
                high, inside_high, least, most, squares, nan, inf, overflow
            )
    _count(line + NAN, tl.sum(nan, axis=0))
    _count(line + INF, tl.sum(inf, axis=0))
    _count(line + OVERFLOW, tl.sum(overflow, axis=0))
    return tl.min(least, axis=0), tl.max(most, axis=0), tl.sum(squares, axis=0)


@triton.jit
def _look_again(x, inside, least, most, squares, nan, inf, overflow):
    """The rarer figures after one float of each lane."""
    magnitude = tl.where(inside, tl.abs(x), 0.0)
    finite = inside & (magnitude < float("inf"))
    wide = tl.where(finite, x, 0.0).to(tl.float64)
    least = tl.minimum(least, tl.where(finite, x, float("inf")))
    most = tl.maximum(most, tl.where(finite, x, float("-inf")))
    squares += wide * wide
    nan += tl.where(magnitude <= float("inf"), 0, 1)
    inf += tl.where(magnitude == float("inf"), 1, 0)
    overflow += tl.where((magnitude >= _FIRST_INF) & finite, 1, 0)
    return least, most, squares, nan, inf, overflow


@triton.jit
def _rest(address, first, count, lanes, packed: tl.constexpr):
    """Words of a tile that is not whole, zeros outside, and which of their floats there are; at any address."""
    if packed:
        halves = address.to(tl.pointer_type(tl.int16)) + first
        inside = first + lanes * 2 < count
        inside_high = first + lanes * 2 + 1 < count
        low = tl.load(halves + lanes * 2, mask=inside, other=0).to(tl.int32)
        high = tl.load(halves + lanes * 2 + 1, mask=inside_high, other=0).to(tl.int32)
        word = (low & 0xFFFF) | (high << 16)
    else:
        inside = first + lanes < count
        inside_high = inside
        word = tl.load(address.to(tl.pointer_type(tl.int32)) + first + lanes, mask=inside, other=0)
    return word, inside, inside_high


@triton.jit
def _values(word, packed: tl.constexpr, is_float16: tl.constexpr):
    """The float32 of each half of a word: a float16, or a bfloat16 (the top half of a float32); or its own, twice."""
    if is_float16:
        low = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    elif packed:
        low = (word << 16).to(tl.float32, bitcast=True)
        high = (word & -65536).to(tl.float32, bitcast=True)
    else:
        low = word.to(tl.float32, bitcast=True)
        high = low
    return low, high


@triton.jit
def _at_least(word, threshold: tl.constexpr, packed: tl.constexpr):
    """1 for each float whose magnitude has no fewer bits than the threshold, in its own half of the result."""
    if packed:
        flags = ((word & _HALVES) + (0x8000 - threshold) * _TOPS) >> 15
        found = flags & _ONES
    else:
        found = tl.where((word & 0x7FFFFFFF) >= threshold, 1, 0)
    return found


@triton.jit
def _sum(counters, packed: tl.constexpr):
    """All counters of all lanes."""
    if packed:
        counters = (counters & 0xFFFF) + ((counters >> 16) & 0xFFFF)
    return tl.sum(counters, axis=0)


@triton.jit
def _key(x):
    """An int64 that orders as the floats do, from -2**31 to 2**31 - 1."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _count(place, number):
    """Adds to the table, where there is something to add."""
    tl.atomic_add(place, number.to(tl.int64), mask=number > 0, sem="relaxed")
