"""The loop over the rows of a unit: counts and sums in one pass, each vector loaded once.

Magnitudes that come as float32 are added in float32 for ``BATCH`` vectors, and then in float64. So at most 20 of them
are added one after the other in float32, and the relative error of a sum stays below 2**-19.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gemma_doctor.kernels.vectors import F32, F64, I64, Node, Vector
from gemma_doctor.kernels.words import LINE, Words, loop

__all__ = ["DOUBLES", "FLOATS", "Rows", "Unit", "nbytes"]

FLOATS, DOUBLES = 16, 8
"""Lanes of a vector of float32 and of float64."""

BATCH = 16
"""Vectors whose magnitudes are added in float32."""


def nbytes(itemsize: int) -> int:
    """Bytes that a unit may have, where the last vector of each row counts as full.

    An 8-bit counter in a lane holds 128 vectors. Elsewhere 32 KiB, so that a second look finds them in the cache.
    """
    return 128 * LINE if itemsize == 1 else 512 * LINE


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that follow each other, or a part of one.

    Attributes:
        address: The first element's.
        number: How many rows.
        length: Elements in each.
    """

    address: Node
    number: Node
    length: Node


@dataclass(frozen=True, slots=True)
class Unit:
    """What is counted and added in one pass.

    Attributes:
        words: What the elements are.
        rows: Where they are.
        count: From words, their mask and counters to the counters after them.
        decode: From words to vectors of magnitudes: all float32, or all float64.
        narrow: Whether they are float32.
        exact: Whether their squares are exact.
    """

    words: Words
    rows: Rows
    count: Callable[[Vector, Vector, list[Vector]], list[Vector]]
    decode: Callable[[Vector], list[Vector]]
    narrow: bool
    exact: bool

    def scan(self, counters: list[Vector]) -> tuple[list[Vector], list[Node]]:
        """Scans all of it.

        Args:
            counters: What ``count`` starts with; vectors like the words.

        Returns:
            The counters, and these scalars: how many rows add up to nothing, the sum of magnitudes and of squares, and
            the largest of each over a row.
        """
        b = self.words.builder
        row_bytes = b.mul(self.rows.length, I64(self.words.bits // 8))
        start = [Vector(b, number) for number in (I64(0), F64(0.0), F64(0.0), F64(0.0), F64(0.0))]

        def row(index: Node, state: list[Vector]) -> list[Vector]:
            counters, sums = self._row(b.add(self.rows.address, b.mul(index, row_bytes)), state[:-5])
            l1, squares = (total.folded(Vector.__add__) for total in sums)
            empty, all_l1, all_squares, most, most_squares = (scalar.value for scalar in state[-5:])
            scalars = [
                b.add(empty, b.zext(b.fcmp_ordered("==", l1, F64(0.0)), I64)),
                b.fadd(all_l1, l1),
                b.fadd(all_squares, squares),
                b.select(b.fcmp_ordered(">", l1, most), l1, most),
                b.select(b.fcmp_ordered(">", squares, most_squares), squares, most_squares),
            ]
            return [*counters, *(Vector(b, scalar) for scalar in scalars)]

        state = loop(b, self.rows.number, [*counters, *start], row)
        return state[:-5], [scalar.value for scalar in state[-5:]]

    def _row(self, address: Node, counters: list[Vector]) -> tuple[list[Vector], list[Vector]]:
        """The counters after a row, and its two sums in float64, lane by lane."""
        b, words, many = self.words.builder, self.words, len(counters)
        whole = b.udiv(self.rows.length, I64(words.lanes))
        state = words.over_rest(address, self.rows.length, [*counters, *self._zeros()], self._step)
        if not self.narrow:
            state = words.over_whole(address, whole, state, self._step)
            return state[:many], _joined(state[many:])

        def batch(index: Node, state: list[Vector]) -> list[Vector]:
            first = b.mul(index, I64(BATCH))
            left = b.sub(whole, first)
            vectors = b.select(b.icmp_signed("<", left, I64(BATCH)), left, I64(BATCH))
            after = words.over_whole(words.address(address, first), vectors, state[:-2], self._step)
            return [*after[:many], *self._zeros(), *_flushed(state[-2:], after[many:])]

        batches = b.udiv(b.add(whole, I64(BATCH - 1)), I64(BATCH))
        totals = [Vector.full(b, F64, DOUBLES, 0.0)] * 2
        state = loop(b, batches, [*state, *totals], batch)
        return state[:many], _flushed(state[-2:], state[many:-2])

    def _step(self, words: Vector, mask: Vector, state: list[Vector]) -> list[Vector]:
        """Counts and adds one vector."""
        sums = len(self._zeros())
        counters, l1, squares = state[:-sums], state[-sums : -sums // 2], state[-sums // 2 :]
        for index, part in enumerate(self.decode(words)):
            lane = index % len(l1)
            l1[lane] = l1[lane] + part
            squares[lane] = squares[lane] + part.squared(exact=self.exact)
        return [*self.count(words, mask, counters), *l1, *squares]

    def _zeros(self) -> list[Vector]:
        """Sums of nothing: of magnitudes, then of squares; a few of each, since an addition takes some cycles."""
        element, lanes = (F32, FLOATS) if self.narrow else (F64, DOUBLES)
        return [Vector.full(self.words.builder, element, lanes, 0.0)] * (2 * min(4, self.words.lanes // lanes))


def _flushed(totals: list[Vector], sums: list[Vector]) -> list[Vector]:
    """The totals in float64 with what has been added in float32, of which half as many lanes are widened."""
    return [total + _tree(part.halves()).widened(F64) for total, part in zip(totals, _joined(sums), strict=True)]


def _joined(sums: list[Vector]) -> list[Vector]:
    """The sums of magnitudes added to one vector, and those of squares to another."""
    half = len(sums) // 2
    return [_tree(sums[:half]), _tree(sums[half:])]


def _tree(vectors: Sequence[Vector]) -> Vector:
    while vectors[1:]:
        vectors = [a + b for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]
