"""A unit of integers."""

from __future__ import annotations

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gemma_doctor.kernels.units import DOUBLES, Rows, Unit
from gemma_doctor.kernels.vectors import I32, I64, Node, Vector, as_int64, counted
from gemma_doctor.kernels.words import Words

__all__ = ["scan_integers"]

_EXACT = 16
"""Most bits of an integer whose square float64 holds exactly."""


@intrinsic  # type: ignore[untyped-decorator]
def scan_integers(_context: Node, _address: Node, _rows: Node, _length: Node, zero: Node) -> Node:
    """Scans a unit in one pass.

    Args (of the running program):
        address: The first element's.
        rows: How many rows.
        length: Elements in each.
        zero: An integer; its type is the elements'.

    Returns:
        Integers: the largest and the smallest element (of unsigned ones of 64 bits, less 2**63), how many are zero,
        and how many rows are nothing else. Then floats: the sum of magnitudes and of squares, and the largest of each
        over a row.
    """

    def generate(_ctx: Node, builder: Node, _sig: Node, args: Node) -> Node:
        *place, _ = args
        run = Words(builder, zero.bitwidth)
        flip = run.full(0) if zero.signed else run.sign  # makes an order of signed integers of any order

        def count(words: Vector, mask: Vector, counters: list[Vector]) -> list[Vector]:
            most, least, zeros = counters
            ordered = words ^ flip
            return [
                most.larger_signed(ordered.where(mask, run.sign)),
                least.smaller_signed(ordered.where(mask, run.magnitude)),
                zeros.less_one_where(mask & words.equals(run.full(0))),
            ]

        decode = _signed if zero.signed else _unsigned
        unit = Unit(run, Rows(*place), count, decode, narrow=False, exact=run.bits <= _EXACT)
        (most, least, zeros), scalars = unit.scan([run.sign, run.magnitude, run.full(0)])
        extremes = [most.folded(Vector.larger_signed), least.folded(Vector.smaller_signed)]
        offset = 0 if zero.signed or run.bits == I64.width else 1 << (run.bits - 1)
        found = [builder.add(as_int64(builder, extreme), I64(offset)) for extreme in extremes]
        return cgutils.pack_struct(builder, [*found, counted(zeros), *scalars])

    results = types.Tuple((types.int64,) * 4 + (types.float64,) * 4)
    return results(types.intp, types.intp, types.intp, zero), generate


def _signed(words: Vector) -> list[Vector]:
    return [part.as_floats(signed=True).absolute() for part in _parts(words, Vector.widened_signed)]


def _unsigned(words: Vector) -> list[Vector]:
    return [part.as_floats(signed=False) for part in _parts(words, Vector.widened)]


def _parts(words: Vector, widened: Node) -> list[Vector]:
    """As many to a vector as it has float64, and of 32 bits at least: what the conversion takes."""
    parts = [words]
    while parts[0].lanes > DOUBLES:
        parts = [half for part in parts for half in part.halves()]
    return [widened(part, I32) for part in parts] if words.bits < I32.width else parts
