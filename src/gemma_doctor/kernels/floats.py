"""A unit of floats: what can be said of it in one pass, and a second look where it holds something unusual.

Counts are comparisons of the bits without the sign, as integers (see :mod:`.formats`), in counters as narrow as the
data. The type of the thresholds says how wide the elements are.
"""

from __future__ import annotations

import platform

import numba
from llvmlite import binding
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gemma_doctor.kernels.units import DOUBLES, FLOATS, Rows, Unit
from gemma_doctor.kernels.vectors import F16, F32, F64, I16, I32, I64, Node, Vector, as_int64, counted
from gemma_doctor.kernels.words import Words

__all__ = ["count_rarities", "scan_usual", "sum_finite"]

_NARROW = 16
"""Most bits of a format whose squares are exact in float32, unless they are too large or too small for it."""


@intrinsic  # type: ignore[untyped-decorator]
def scan_usual(
    _context: Node, _address: Node, _rows: Node, _length: Node, kept: Node, normal: Node, shift: Node
) -> Node:
    """Scans a unit in one pass. Its sums mean nothing where the largest magnitude is too much for them.

    Args (of the running program):
        address: The first element's.
        rows: How many rows.
        length: Elements in each.
        kept: First magnitude that float16 does not flush to zero.
        normal: First magnitude that float16 keeps as a normal number; None where it is ``kept``.
        shift: Left shift that makes a float16 of an element; None where nothing does.

    Returns:
        Integers: the largest magnitude of an element without and of one with the sign bit (-1 for none), how many
        magnitudes lie below ``kept`` and below ``normal``, and how many rows add up to nothing. Then floats: the sum of
        magnitudes and of squares, and the largest of each over a row.
    """

    def generate(_ctx: Node, builder: Node, _sig: Node, args: Node) -> Node:
        *place, kept_at, normal_at, widen = args
        run = Words(builder, kept.bitwidth)
        limits = [run.splat(at) for at, kind in ((kept_at, kept), (normal_at, normal)) if kind != types.none]

        def count(words: Vector, mask: Vector, counters: list[Vector]) -> list[Vector]:
            signed, unsigned, *below = counters
            magnitude = words & run.magnitude
            return [
                signed.larger_signed(words.where(mask, run.sign)),
                unsigned.larger(words),
                *(seen.less_one_where(mask & (magnitude < limit)) for seen, limit in zip(below, limits, strict=True)),
            ]

        unit = Unit(
            run,
            Rows(*place),
            count,
            decode=lambda words: _decoded(words, None if shift == types.none else widen),
            narrow=run.bits <= _NARROW,
            exact=run.bits < I64.width,
        )
        (signed, unsigned, *below), scalars = unit.scan([run.sign, run.full(0), *(run.full(0) for _ in limits)])
        counts = [counted(below[0]), counted(below[-1])]
        return cgutils.pack_struct(builder, [*_largest(signed, unsigned), *counts, *scalars])

    results = types.Tuple((types.int64,) * 5 + (types.float64,) * 4)
    return results(types.intp, types.intp, types.intp, kept, normal, shift), generate


def _largest(signed: Vector, unsigned: Vector) -> list[Node]:
    """The largest magnitude without and with the sign bit, from the largest bits as signed and as unsigned integers."""
    b = signed.builder
    positive = as_int64(b, signed.folded(Vector.larger_signed))
    negative = unsigned.folded(Vector.larger)
    magnitude = as_int64(b, b.and_(negative, negative.type((1 << (signed.bits - 1)) - 1)))
    return [
        b.select(b.icmp_signed("<", positive, I64(0)), I64(-1), positive),
        b.select(b.icmp_signed("<", negative, negative.type(0)), magnitude, I64(-1)),
    ]


@intrinsic  # type: ignore[untyped-decorator]
def count_rarities(_context: Node, _address: Node, _size: Node, infinity: Node, overflow: Node) -> Node:
    """Counts what few units have.

    Returns:
        How many magnitudes are zero, below ``overflow``, below ``infinity`` (the finite ones) and equal to it; then,
        of the finite elements, the largest and the smallest magnitude without the sign bit, and with it (-1 for none).
    """

    def generate(_ctx: Node, builder: Node, _sig: Node, args: Node) -> Node:
        address, size, *thresholds = args
        run = Words(builder, infinity.bitwidth)
        endless, beyond = map(run.splat, thresholds)
        zero, none = run.full(0), run.full(-1)

        def step(words: Vector, mask: Vector, state: list[Vector]) -> list[Vector]:
            zeros, moderate, finite, infinite, *extremes = state
            magnitude = words & run.magnitude
            measured = mask & (magnitude < endless)
            positive = magnitude.where(measured & words.equals(magnitude), none)
            negative = magnitude.where(measured & (magnitude < words), none)
            return [
                zeros.less_one_where(mask & magnitude.equals(zero)),
                moderate.less_one_where(mask & (magnitude < beyond)),
                finite.less_one_where(measured),
                infinite.less_one_where(mask & magnitude.equals(endless)),
                extremes[0].larger_signed(positive),
                extremes[1].smaller(positive),
                extremes[2].larger_signed(negative),
                extremes[3].smaller(negative),
            ]

        state = run.over_all(address, size, [zero] * 4 + [none] * 4, step)
        joins = [Vector.larger_signed, Vector.smaller] * 2
        extremes = [as_int64(builder, v.folded(join)) for v, join in zip(state[4:], joins, strict=True)]
        return cgutils.pack_array(builder, [*map(counted, state[:4]), *extremes])

    return types.UniTuple(types.int64, 8)(types.intp, types.intp, infinity, overflow), generate


@intrinsic  # type: ignore[untyped-decorator]
def sum_finite(_context: Node, _address: Node, _size: Node, infinity: Node, shift: Node) -> Node:
    """Sum of magnitudes and of squares in float64, leaving out what is not finite."""

    def generate(_ctx: Node, builder: Node, _sig: Node, args: Node) -> Node:
        address, size, threshold, widen = args
        run = Words(builder, infinity.bitwidth)
        endless = run.splat(threshold)

        def step(words: Vector, _mask: Vector, state: list[Vector]) -> list[Vector]:
            l1, squares = state
            finite = words.where((words & run.magnitude) < endless, run.full(0))
            for part in _decoded(finite, None if shift == types.none else widen):
                wide = part.widened(F64) if part.bits < I64.width else part
                l1, squares = l1 + wide, squares + wide.squared(exact=run.bits < I64.width)
            return [l1, squares]

        start = Vector.full(builder, F64, FLOATS if run.bits <= _NARROW else DOUBLES, 0.0)
        sums = run.over_all(address, size, [start, start], step)
        return cgutils.pack_array(builder, [total.folded(Vector.__add__) for total in sums])

    return types.UniTuple(types.float64, 2)(types.intp, types.intp, infinity, shift), generate


def _decoded(words: Vector, shift: Node) -> list[Vector]:
    """Magnitudes of floats: 16 to a vector of float32 for 8 and 16-bit formats, 8 to one of float64 for wider ones."""
    magnitudes = words & words.constant((1 << (words.bits - 1)) - 1)
    if words.bits == I64.width:
        return [magnitudes.read_as(F64, 64)]
    if words.bits == I32.width:
        return [half.widened(F64) for half in magnitudes.read_as(F32, 32).halves()]
    if shift is None:
        return _tops(words)
    halves = magnitudes.halves() if words.bits == I16.width else _shifted(magnitudes, shift)
    return [_from_float16(half) for half in halves]


def _tops(words: Vector) -> list[Vector]:
    """bfloat16: two in each little-endian word of 32 bits, and each is the top of a float32."""
    pairs = words.read_as(I32, 32)
    first = (pairs << pairs.constant(16)) & pairs.constant(0x7FFF_FFFF)
    second = pairs & pairs.constant(0x7FFF_0000)
    return [first.read_as(F32, 32), second.read_as(F32, 32)]


def _shifted(magnitudes: Vector, shift: Node) -> list[Vector]:
    """8-bit floats: two in each little-endian word of 16 bits, and a shift makes each a float16."""
    pairs = magnitudes.read_as(I16, 16)
    shifts = Vector.splat(pairs.builder, shift, pairs.lanes)
    both = pairs & pairs.constant(0x7F), pairs >> pairs.constant(8)
    return [half for bits in both for half in (bits << shifts).halves()]


def _from_float16(magnitudes: Vector) -> Vector:
    """Magnitudes of float16 as float32."""
    if _widens_float16():
        return magnitudes.read_as(F16, 16).widened(F32)
    bits = magnitudes.widened(I32)
    value = ((bits << bits.constant(13)) + bits.constant(112 << 23)).read_as(F32, 32)  # right if it is normal
    return value.smaller_float(value + value + value.constant(-(2.0**-14)))  # and this is, if it is subnormal


def _widens_float16() -> bool:
    """Whether the processor compiled for has an instruction for that; LLVM calls a C function where it has none."""
    if platform.machine() in {"aarch64", "arm64"}:
        return True
    chosen = numba.config.CPU_NAME or numba.config.CPU_FEATURES  # by the user, and not known to have it
    return not chosen and bool(binding.get_host_cpu_features().get("f16c"))
