"""The hot loops, compiled by numba: every statistic of a chunk in one pass over its bytes.

Three things make them run at the speed of memory:

* A unit of about ``UNIT`` elements is counted and then summed while it lies in the first-level cache.
* Counting compares integers (see :mod:`.formats`) in accumulators as narrow as the data, so that the vector
  lanes stay full. What almost no unit has (zeros among the flushed, NaN, inf, one sign only) is looked for in
  a second pass over that unit alone.
* The next units are prefetched between the loops; the hardware's own prefetcher stops at each page.

Floating-point sums run in fixed lanes and a fixed tree and are never reordered, so every machine gets the same
bits. Magnitudes of 8 and 16-bit formats are added in float32, ``RUN`` stripes of eight a lane, then in float64: relative error
below 2**-21. Their squares are exact in float32, so fusing the multiplication with the addition changes nothing.
A unit whose squares could leave float32's range, or that holds a NaN or inf, takes a plain float64 loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

__all__ = ["scan_floats", "scan_integers"]

UNIT = 8192
LANES = 32
STRIPE = 8 * LANES
RUN = 4
AHEAD = 1 << 15
LINE = 64

F = TypeVar("F", bound=Callable[..., Any])


def _compiled(**options: Any) -> Callable[[F], F]:
    """``numba.njit`` without the GIL, cached on disk where any cache folder can be written."""

    def decorate(function: F) -> F:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # numba found no writable folder for its cache: compile anew in each process
            return numba.njit(nogil=True, **options)(function)  # type: ignore[no-any-return]

    return decorate


@intrinsic  # type: ignore[untyped-decorator]
def _as_float32(_context: Any, _bits: Any) -> Any:
    """The float32 that has these 32 bits."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _low(_context: Any, _pair: Any) -> Any:
    """|first| of two bfloat16 in one little-endian word, as float32: its bits moved up, the sign cleared."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.and_(builder.shl(args[0], word(16)), word(0x7FFF_FFFF))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _high(_context: Any, _pair: Any) -> Any:
    """|second| of two bfloat16 in one little-endian word, as float32: the first's bits and the sign cleared."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.bitcast(builder.and_(args[0], ir.IntType(32)(0x7FFF_0000)), ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _as_float64(_context: Any, _bits: Any) -> Any:
    """The float64 that has these 64 bits."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _half(_context: Any, _bits: Any) -> Any:
    """The float16 that has these 16 bits, widened to float32 (one instruction where the CPU has it)."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(_context: Any, _address: Any) -> Any:
    """Asks for the cache line at an address; harmless wherever the address points."""

    def generate(ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], signature)
        read, second_level, data = word(0), word(2), word(1)
        builder.call(function, [pointer, read, second_level, data])
        return ctx.get_dummy_value()

    return types.void(types.intp), generate


# Counting: integer comparisons only -------------------------------------------------------------------------


def _count(words: Any, kept: Any, normal: Any) -> Any:
    """Counts one unit.

    Returns:
        Whether a sign bit is clear, the largest bits among such elements (0 for none), the largest bits as an
        unsigned integer, and how many magnitudes lie below ``kept`` and below ``normal``.
    """


@overload(_count, jit_options={"nogil": True})  # type: ignore[untyped-decorator]
def _count_by_width(words: Any, kept: Any, normal: Any) -> Callable[..., Any]:
    unsigned, signed = _integers(words.dtype.bitwidth)
    positive, least = signed(np.iinfo(signed).max), signed(np.iinfo(signed).min)
    stripe = 128 if words.dtype.bitwidth == 8 else UNIT  # no more than the narrow counters can hold

    def count(words: Any, kept: Any, normal: Any) -> Any:
        most_signed, most_unsigned = least, unsigned(0)
        below_kept, below_normal = 0, 0
        for start in range(0, words.size, stripe):
            part = words[start : start + stripe]
            few, some = signed(0), signed(0)  # they count downwards: a true comparison is -1 in a vector lane
            for i in range(part.size):
                bits = part[i]
                as_signed = signed(bits)
                most_signed = max(most_signed, as_signed)
                most_unsigned = max(most_unsigned, bits)
                magnitude = signed(as_signed & positive)
                few = signed(few - signed(magnitude < kept))
                some = signed(some - signed(magnitude < normal))
            below_kept -= np.int64(few)
            below_normal -= np.int64(some)
        return most_signed >= 0, unsigned(max(most_signed, signed(0))), most_unsigned, below_kept, below_normal

    return count


def _integers(width: int) -> tuple[Any, Any]:
    """The unsigned and the signed NumPy integer of that many bits."""
    return {
        8: (np.uint8, np.int8),
        16: (np.uint16, np.int16),
        32: (np.uint32, np.int32),
        64: (np.uint64, np.int64),
    }[width]


@_compiled()
def _zeros(words, magnitude):  # type: ignore[no-untyped-def]
    """How many elements are zero of either sign."""
    zeros = 0
    for bits in words:
        zeros += (bits & magnitude) == 0
    return zeros


@_compiled()
def _least(words):  # type: ignore[no-untyped-def]
    """Smallest bits as an unsigned integer."""
    least = words[0]
    for bits in words:
        least = min(least, bits)
    return least


# Summing: fixed lanes, fixed tree ---------------------------------------------------------------------------


def _magnitude(bits: Any, half: Any, widen: Any) -> Any:
    """|x| of one element: float32 for 8 to 32-bit words, float64 for 64-bit ones."""


@overload(_magnitude)  # type: ignore[untyped-decorator]
def _magnitude_by_width(bits: Any, half: Any, widen: Any) -> Callable[..., Any]:
    def eight(bits: Any, half: Any, widen: Any) -> Any:
        return _half(np.uint16(np.uint16(bits & np.uint8(0x7F)) * widen))

    def sixteen(bits: Any, half: Any, widen: Any) -> Any:
        magnitude = np.uint16(bits & np.uint16(0x7FFF))
        return _half(magnitude) if half else _as_float32(np.uint32(np.uint32(magnitude) << np.uint32(16)))

    def thirty_two(bits: Any, half: Any, widen: Any) -> Any:
        return _as_float32(np.uint32(bits & np.uint32(0x7FFF_FFFF)))

    def sixty_four(bits: Any, half: Any, widen: Any) -> Any:
        return _as_float64(np.uint64(bits & np.uint64(0x7FFF_FFFF_FFFF_FFFF)))

    return {8: eight, 16: sixteen, 32: thirty_two, 64: sixty_four}[bits.bitwidth]


def _widened(bits: Any, widen: Any) -> Any:
    """|x| of an element that a factor widens to float16, as float32."""


@overload(_widened)  # type: ignore[untyped-decorator]
def _widened_by_width(bits: Any, widen: Any) -> Callable[..., Any]:
    def eight(bits: Any, widen: Any) -> Any:
        return _half(np.uint16(np.uint16(bits & np.uint8(0x7F)) * widen))

    def sixteen(bits: Any, widen: Any) -> Any:
        return _half(np.uint16(bits & np.uint16(0x7FFF)))

    return {8: eight, 16: sixteen}[bits.bitwidth]


def _widened(bits: Any, widen: Any) -> Any:
    """|x| of an element that a factor widens to float16, as float32."""


@overload(_widened)  # type: ignore[untyped-decorator]
def _widened_by_width(bits: Any, widen: Any) -> Callable[..., Any]:
    def eight(bits: Any, widen: Any) -> Any:
        return _half(np.uint16(np.uint16(bits & np.uint8(0x7F)) * widen))

    def sixteen(bits: Any, widen: Any) -> Any:
        return _half(np.uint16(bits & np.uint16(0x7FFF)))

    return {8: eight, 16: sixteen}[bits.bitwidth]


@_compiled()
def _low(pair):  # type: ignore[no-untyped-def]
    """|first| of two bfloat16 in one little-endian word."""
    return _as_float32(np.uint32((pair << np.uint32(16)) & np.uint32(0x7FFF_FFFF)))


@_compiled()
def _high(pair):  # type: ignore[no-untyped-def]
    """|second| of two bfloat16 in one little-endian word."""
    return _as_float32(np.uint32(pair & np.uint32(0x7FFF_0000)))


@_compiled()
def _flush(partial, lanes):  # type: ignore[no-untyped-def]
    """Moves the float32 sums of some stripes into the float64 lanes."""
    for i in range(2 * LANES):
        lanes[i] += np.float64(partial[i])
        partial[i] = np.float32(0.0)


@_compiled(fastmath={"contract"})
def _add_pairs(words, lanes, partial):  # type: ignore[no-untyped-def]
    """Adds as many bfloat16 as fill whole stripes of little-endian pairs; returns how many."""
    whole = words.size // STRIPE
    pairs = words[: whole * STRIPE].view(np.uint32)
    ahead = words.ctypes.data + AHEAD
    for stripe in range(whole):
        for line in range(2 * STRIPE // LINE):
            _prefetch(ahead + 2 * STRIPE * stripe + LINE * line)
        part = pairs[stripe * (STRIPE // 2) : (stripe + 1) * (STRIPE // 2)]
        for i in range(LANES):  # written out: only so does the compiler make vectors of the loop over lanes
            a, b = _low(part[i]), _high(part[i])
            c, d = _low(part[i + LANES]), _high(part[i + LANES])
            e, f = _low(part[i + 2 * LANES]), _high(part[i + 2 * LANES])
            g, h = _low(part[i + 3 * LANES]), _high(part[i + 3 * LANES])
            partial[i] += ((a + b) + (c + d)) + ((e + f) + (g + h))
            partial[LANES + i] += ((a * a + b * b) + (c * c + d * d)) + ((e * e + f * f) + (g * g + h * h))
        if stripe % RUN == RUN - 1:
            _flush(partial, lanes)
    _flush(partial, lanes)
    return whole * STRIPE


@_compiled(fastmath={"contract"})
def _add_halves(words, widen, lanes, partial):  # type: ignore[no-untyped-def]
    """Adds as many elements that widen to float16 as fill whole stripes; returns how many."""
    whole = words.size // STRIPE
    size = words.itemsize * STRIPE
    ahead = words.ctypes.data + AHEAD
    for stripe in range(whole):
        for line in range(size // LINE):
            _prefetch(ahead + size * stripe + LINE * line)
        part = words[stripe * STRIPE : (stripe + 1) * STRIPE]
        for i in range(LANES):  # written out, as above
            a, b = _widened(part[i], widen), _widened(part[i + LANES], widen)
            c, d = _widened(part[i + 2 * LANES], widen), _widened(part[i + 3 * LANES], widen)
            e, f = _widened(part[i + 4 * LANES], widen), _widened(part[i + 5 * LANES], widen)
            g, h = _widened(part[i + 6 * LANES], widen), _widened(part[i + 7 * LANES], widen)
            partial[i] += ((a + b) + (c + d)) + ((e + f) + (g + h))
            partial[LANES + i] += ((a * a + b * b) + (c * c + d * d)) + ((e * e + f * f) + (g * g + h * h))
        if stripe % RUN == RUN - 1:
            _flush(partial, lanes)
    _flush(partial, lanes)
    return whole * STRIPE


@_compiled()
def _add_singly(words, half, widen, lanes):  # type: ignore[no-untyped-def]
    """Adds elements in float64, each to its lane."""
    for start in range(0, words.size - LANES + 1, LANES):
        part = words[start : start + LANES]
        for i in range(LANES):
            value = np.float64(_magnitude(part[i], half, widen))
            lanes[i] += value
            lanes[LANES + i] += value * value
    rest = words[words.size - words.size % LANES :]
    for i in range(rest.size):
        value = np.float64(_magnitude(rest[i], half, widen))
        lanes[i] += value
        lanes[LANES + i] += value * value


def _add_stripes(words: Any, half: Any, widen: Any, lanes: Any, partial: Any) -> Any:
    """Adds what fills whole stripes, where the width has a loop for that; returns how many elements."""


@overload(_add_stripes)  # type: ignore[untyped-decorator]
def _add_stripes_by_width(words: Any, half: Any, widen: Any, lanes: Any, partial: Any) -> Callable[..., Any]:
    def eight(words: Any, half: Any, widen: Any, lanes: Any, partial: Any) -> Any:
        return _add_halves(words, widen, lanes, partial)

    def sixteen(words: Any, half: Any, widen: Any, lanes: Any, partial: Any) -> Any:
        if half:
            return _add_halves(words, widen, lanes, partial)
        return _add_pairs(words, lanes, partial)

    def wide(words: Any, half: Any, widen: Any, lanes: Any, partial: Any) -> Any:
        return 0

    return {8: eight, 16: sixteen}.get(words.dtype.bitwidth, wide)


@_compiled()
def _sum_finite(words, form):  # type: ignore[no-untyped-def]
    """The same, one element after the other in float64, leaving out NaN and inf."""
    l1 = 0.0
    squares = 0.0
    for bits in words:
        if (bits & form.magnitude) < form.infinity:
            value = np.float64(_magnitude(bits, form.half, form.widen))
            l1 += value
            squares += value * value
    return l1, squares


# One chunk --------------------------------------------------------------------------------------------------

NAN, INF, ZEROS, OVERFLOW, BELOW_KEPT, BELOW_NORMAL, ZERO_ROWS = range(7)
MAX_POSITIVE, MIN_POSITIVE, MAX_NEGATIVE, MIN_NEGATIVE = range(4)


class Form(NamedTuple):
    """A format's thresholds in the types that the loops compare (see :class:`.formats.FloatFormat`).

    Attributes:
        magnitude: All bits but the sign.
        infinity: Bits of +inf, or what follows the last finite value.
        has_infinity: Whether ``infinity`` is an infinity.
        overflow: First magnitude that leaves float16.
        kept: First magnitude that float16 does not flush to zero; signed.
        normal: First magnitude that float16 keeps as a normal number; signed.
        half: Whether 16-bit words are float16 (else bfloat16).
        widen: Factor from an 8-bit word to the bits of a float16.
        tame: First largest magnitude for which float32 squares lose nothing to underflow.
        wild: First largest magnitude for which float32 squares may overflow when added.
    """

    magnitude: Any
    infinity: Any
    has_infinity: bool
    overflow: Any
    kept: Any
    normal: Any
    half: bool
    widen: Any
    tame: Any
    wild: Any


class Tally(NamedTuple):
    """What a chunk adds up to, and the workspace for it; arrays that the loops write.

    Attributes:
        counts: int64, shape (7,): NAN, INF, ZEROS, OVERFLOW, BELOW_KEPT, BELOW_NORMAL, ZERO_ROWS.
        extremes: int64, shape (4,): MAX_POSITIVE, MIN_POSITIVE, MAX_NEGATIVE, MIN_NEGATIVE, as magnitudes' bits;
            -1 where no finite element has that sign. The least ones hold only where the other sign is absent.
        tops: float64, shape (2,): the largest whole row's sum of magnitudes and of squares, unscaled.
        sums: float64, shape (blocks, 2): sum of magnitudes and of squares of each block, unscaled.
        zeros: int64, shape (blocks,): zeros in each block.
        lanes: float64, shape (2 * LANES,): workspace.
        partial: float32, shape (2 * LANES,): workspace, all zero between rows.
    """

    counts: npt.NDArray[np.int64]
    extremes: npt.NDArray[np.int64]
    tops: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]
    zeros: npt.NDArray[np.int64]
    lanes: npt.NDArray[np.float64]
    partial: npt.NDArray[np.float32]

    @classmethod
    def empty(cls, blocks: int) -> Tally:
        """A tally of nothing yet, for a chunk of that many blocks."""
        return cls(
            counts=np.zeros(7, np.int64),
            extremes=np.full(4, -1, np.int64),
            tops=np.zeros(2),
            sums=np.zeros((blocks, 2)),
            zeros=np.zeros(blocks, np.int64),
            lanes=np.empty(2 * LANES),
            partial=np.zeros(2 * LANES, np.float32),
        )


@_compiled()
def _widen_extremes(bits, form, extremes):  # type: ignore[no-untyped-def]
    """Takes one finite element into the extremes: magnitudes' bits, -1 where no element has that sign."""
    value = np.int64(bits & form.magnitude)
    negative = bits > form.magnitude
    least = MIN_NEGATIVE if negative else MIN_POSITIVE
    most = MAX_NEGATIVE if negative else MAX_POSITIVE
    extremes[most] = max(extremes[most], value)
    extremes[least] = value if extremes[least] < 0 else min(extremes[least], value)


@_compiled()
def _count_grave(words, form, counts, extremes):  # type: ignore[no-untyped-def]
    """Counts NaN, inf and overflow, and takes the finite elements alone into the extremes."""
    for bits in words:
        value = bits & form.magnitude
        if value < form.infinity:
            counts[OVERFLOW] += value >= form.overflow
            _widen_extremes(bits, form, extremes)
        elif value == form.infinity and form.has_infinity:
            counts[INF] += 1
        else:
            counts[NAN] += 1


@_compiled()
def _count_unit(words, form, counts, extremes):  # type: ignore[no-untyped-def]
    """Counts one unit; returns its largest magnitude's bits."""
    any_positive, most_positive, most_unsigned, below_kept, below_normal = _count(words, form.kept, form.normal)
    counts[BELOW_KEPT] += below_kept
    counts[BELOW_NORMAL] += below_normal
    if below_kept:
        counts[ZEROS] += below_kept if form.kept == 1 else _zeros(words, form.magnitude)
    largest = max(most_positive, most_unsigned & form.magnitude)
    if largest >= form.overflow:
        _count_grave(words, form, counts, extremes)
        return largest
    _widen_extremes(most_unsigned, form, extremes)
    both_signs = any_positive and most_unsigned > form.magnitude
    _widen_extremes(most_positive if both_signs else _least(words), form, extremes)
    return largest


@_compiled()
def _sum_part(words, largest, form, lanes, partial):  # type: ignore[no-untyped-def]
    """Sum of magnitudes and of squares of a row, or of part of one, whose unit's largest magnitude is known."""
    if largest == 0:
        return 0.0, 0.0
    if largest < form.tame or largest >= form.wild:
        return _sum_finite(words, form)
    for i in range(2 * LANES):
        lanes[i] = 0.0
    done = _add_stripes(words, form.half, form.widen, lanes, partial)
    _add_singly(words[done:], form.half, form.widen, lanes)
    l1, squares = 0.0, 0.0
    for i in range(LANES):
        l1 += lanes[i]
        squares += lanes[LANES + i]
    return l1, squares


@_compiled()
def _scan_block(part, length, form, tally):  # type: ignore[no-untyped-def]
    """Whole rows, or a part of one row; returns its sum of magnitudes and of squares.

    A group is as many short rows as fit a unit, or one long row, which takes several units.
    """
    short = length <= UNIT
    group_length = UNIT // length * length if short else length
    total_l1, total_squares = 0.0, 0.0
    for first in range(0, part.size, group_length):
        group = part[first : first + group_length]
        row_l1, row_squares = 0.0, 0.0
        for start in range(0, group.size, UNIT):
            unit = group[start : start + UNIT]
            largest = _count_unit(unit, form, tally.counts, tally.extremes)
            for offset in range(0, unit.size, length):
                piece = unit[offset : offset + length]
                l1, squares = _sum_part(piece, largest, form, tally.lanes, tally.partial)
                row_l1 += l1
                row_squares += squares
                if short or start + UNIT >= group.size:  # the row ends here
                    tally.tops[0] = max(tally.tops[0], row_l1)
                    tally.tops[1] = max(tally.tops[1], row_squares)
                    row = piece if short else group
                    if row_l1 == 0.0 and _zeros(row, form.magnitude) == row.size:
                        tally.counts[ZERO_ROWS] += 1
                    total_l1 += row_l1
                    total_squares += row_squares
                    row_l1, row_squares = 0.0, 0.0
    return total_l1, total_squares


@_compiled()
def scan_floats(words, length, block, form, tally):  # type: ignore[no-untyped-def]
    """Every statistic of a run of whole blocks (see :mod:`.geometry`), added to the tally.

    Args:
        words: The elements' bits, unsigned, shape (n,), n >= 1.
        length: Elements in a row.
        block: Elements in a full block: whole rows, or a part of one row.
        form: The format's thresholds.
        tally: Where the results go.
    """
    for index in range(tally.zeros.size):
        before = tally.counts[ZEROS]
        l1, squares = _scan_block(words[index * block : (index + 1) * block], length, form, tally)
        tally.sums[index, 0] = l1
        tally.sums[index, 1] = squares
        tally.zeros[index] = tally.counts[ZEROS] - before


@_compiled()
def scan_integers(values, length, block, tally):  # type: ignore[no-untyped-def]
    """The same for integers; magnitudes are summed as float64.

    Args:
        values: The elements, any integer dtype, shape (n,), n >= 1.
        length: Elements in a row.
        block: Elements in a full block.
        tally: Where the results go, the extremes excepted.

    Returns:
        The smallest and the largest element.
    """
    least = most = values[0]
    for index in range(tally.zeros.size):
        part = values[index * block : (index + 1) * block]
        for start in range(0, part.size, length):
            row = part[start : start + length]
            l1, squares, zeros = 0.0, 0.0, 0
            for value in row:
                least = min(least, value)
                most = max(most, value)
                magnitude = abs(np.float64(value))
                l1 += magnitude
                squares += magnitude * magnitude
                zeros += value == 0
            tally.tops[0] = max(tally.tops[0], l1)
            tally.tops[1] = max(tally.tops[1], squares)
            tally.sums[index, 0] += l1
            tally.sums[index, 1] += squares
            tally.zeros[index] += zeros
            for kind in (ZEROS, BELOW_KEPT, BELOW_NORMAL):  # never cast: nothing but zeros becomes zero
                tally.counts[kind] += zeros
            tally.counts[ZERO_ROWS] += zeros == row.size
    return least, most
