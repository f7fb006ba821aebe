"""The hot loops, compiled by numba: every statistic of a chunk in one pass over its bytes.

What happens to each element is spelled out in :mod:`.floats` and :mod:`.integers`, as vector instructions. Here is what
happens to a unit, some 8 to 32 KiB that the cache still holds: what few units have (NaN, inf, overflow, one sign only)
is looked for in a second pass over that unit alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
import numpy.typing as npt
from numba.extending import overload

from gemma_doctor.kernels.floats import count_rarities, scan_usual, sum_finite
from gemma_doctor.kernels.integers import scan_integers
from gemma_doctor.kernels.jit import jit
from gemma_doctor.kernels.words import LINE

__all__ = ["FloatForm", "IntegerForm", "Run", "Tally", "scan"]

NO_FLOATS = (-1, -1, -1, -1)
NO_INTEGERS = (-(1 << 63), (1 << 63) - 1)
"""Extremes of nothing."""

NAN, INF, ZEROS, OVERFLOW, BELOW_KEPT, BELOW_NORMAL, ZERO_ROWS = range(7)
MAX_POSITIVE, MIN_POSITIVE, MAX_NEGATIVE, MIN_NEGATIVE = range(4)
MOST, LEAST = range(2)


class FloatForm(NamedTuple):
    """A float format's thresholds in the type of its words (see :class:`.formats.FloatFormat`).

    Attributes:
        itemsize: Bytes in an element.
        unit: Bytes in a unit.
        infinity: Bits of +inf, or what follows the last finite value.
        has_infinity: Whether ``infinity`` is an infinity.
        overflow: First magnitude that leaves float16.
        kept: First magnitude that float16 does not flush to zero.
        normal: First magnitude that float16 keeps as a normal number; None where it is ``kept``.
        shift: Left shift that makes a float16 of a word; None where nothing does.
        tame: First largest magnitude for which the squares lose nothing to underflow.
        wild: First largest magnitude for which they may overflow when added.
    """

    itemsize: int
    unit: int
    infinity: Any
    has_infinity: bool
    overflow: Any
    kept: Any
    normal: Any
    shift: np.uint16 | None
    tame: Any
    wild: Any


class IntegerForm(NamedTuple):
    """An integer type.

    Attributes:
        itemsize: Bytes in an element.
        unit: Bytes in a unit.
        zero: Its zero.
    """

    itemsize: int
    unit: int
    zero: Any


Form: TypeAlias = FloatForm | IntegerForm

Sums: TypeAlias = tuple[int, float, float, float, float]
"""How many rows are zero, the sum of magnitudes and of squares, and the largest of each over a row."""


class Run(NamedTuple):
    """Elements of a tensor that follow each other.

    Attributes:
        address: The first one's.
        size: How many; at least one.
        length: Elements in a row.
        block: Elements in a full block (see :mod:`.geometry`): whole rows, or a part of one row.
    """

    address: int
    size: int
    length: int
    block: int


class Tally(NamedTuple):
    """What a chunk adds up to; arrays that the loops write.

    Attributes:
        counts: int64, shape (7,): NAN, INF, ZEROS, OVERFLOW, BELOW_KEPT, BELOW_NORMAL, ZERO_ROWS.
        extremes: int64. Of floats MAX_POSITIVE, MIN_POSITIVE, MAX_NEGATIVE, MIN_NEGATIVE, as magnitudes' bits; -1 where
            no finite element has that sign, and the least ones hold only where the other sign is absent. Of integers
            MOST, LEAST; of unsigned ones of 64 bits less 2**63.
        tops: float64, shape (2,): the largest whole row's sum of magnitudes and of squares, unscaled.
        sums: float64, shape (blocks, 2): sum of magnitudes and of squares of each block, unscaled.
    """

    counts: npt.NDArray[np.int64]
    extremes: npt.NDArray[np.int64]
    tops: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, blocks: int, extremes: Sequence[int]) -> Tally:
        """A tally of nothing yet, for a chunk of that many blocks; the extremes depend on what will be scanned."""
        return cls(
            counts=np.zeros(7, np.int64),
            extremes=np.array(extremes, np.int64),
            tops=np.zeros(2),
            sums=np.zeros((blocks, 2)),
        )


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _count_rarities(address: int, size: int, form: FloatForm, tally: Tally) -> None:
    """Counts NaN, inf, overflow and zeros, and takes the finite elements alone into the extremes."""
    rarities = count_rarities(address, size, form.infinity, form.overflow)
    zeros, moderate, finite, infinite = rarities[:4]
    infinite = infinite if form.has_infinity else 0
    tally.counts[ZEROS] += zeros
    tally.counts[OVERFLOW] += finite - moderate
    tally.counts[INF] += infinite
    tally.counts[NAN] += size - finite - infinite
    for kind in (MAX_POSITIVE, MAX_NEGATIVE):
        tally.extremes[kind] = max(tally.extremes[kind], rarities[4 + kind])
    for kind in (MIN_POSITIVE, MIN_NEGATIVE):
        least, before = rarities[4 + kind], tally.extremes[kind]
        tally.extremes[kind] = max(least, before) if min(least, before) < 0 else min(least, before)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _sum_rarities(address: int, rows: int, length: int, form: FloatForm) -> Sums:
    """Sums that are right for any magnitudes, and beside NaN and inf."""
    zero_rows, l1, squares, most, most_squares = 0, 0.0, 0.0, 0.0, 0.0
    for index in range(rows):
        here = address + index * length * form.itemsize
        row = sum_finite(here, length, form.infinity, form.shift)
        zero_rows += row[0] == 0.0 and count_rarities(here, length, form.infinity, form.overflow)[0] == length
        l1 += row[0]
        squares += row[1]
        most = max(most, row[0])
        most_squares = max(most_squares, row[1])
    return zero_rows, l1, squares, most, most_squares


def _scan_floats(address: int, rows: int, length: int, form: FloatForm, tally: Tally) -> Sums:
    """Scans a unit of floats; everything but its sums goes to the tally."""
    found = scan_usual(address, rows, length, form.kept, form.normal, form.shift)
    positive, negative, below_kept, below_normal = found[:4]
    tally.counts[BELOW_KEPT] += below_kept
    tally.counts[BELOW_NORMAL] += below_normal
    largest = max(positive, negative)
    only_zeros_vanish = form.kept == 1
    if min(positive, negative) < 0 or largest >= form.overflow or (below_kept and not only_zeros_vanish):
        _count_rarities(address, rows * length, form, tally)
    else:
        tally.counts[ZEROS] += below_kept
        tally.extremes[MAX_POSITIVE] = max(tally.extremes[MAX_POSITIVE], positive)
        tally.extremes[MAX_NEGATIVE] = max(tally.extremes[MAX_NEGATIVE], negative)
    sums: Sums = found[4:]
    if largest and not form.tame <= largest < form.wild:
        sums = _sum_rarities(address, rows, length, form)
    return sums


def _scan_integers(address: int, rows: int, length: int, form: IntegerForm, tally: Tally) -> Sums:
    """Scans a unit of integers; everything but its sums goes to the tally."""
    found = scan_integers(address, rows, length, form.zero)
    tally.extremes[MOST] = max(tally.extremes[MOST], found[0])
    tally.extremes[LEAST] = min(tally.extremes[LEAST], found[1])
    for kind in (ZEROS, BELOW_KEPT, BELOW_NORMAL):  # integers are never cast: nothing but zeros becomes zero
        tally.counts[kind] += found[2]
    sums: Sums = found[3:]
    return sums


def _scan_unit(address: int, rows: int, length: int, form: Form, tally: Tally) -> Sums:
    """Scans some rows, or a part of one, that are no more than a unit."""
    raise NotImplementedError  # compiled code calls one of the two above


@overload(_scan_unit, strict=False)  # type: ignore[untyped-decorator]
def _scan_unit_of(_address: Any, _rows: Any, _length: Any, form: Any, _tally: Any) -> Callable[..., Any]:
    return _scan_floats if form.instance_class is FloatForm else _scan_integers


def _compile(sources: int) -> Callable[[Run, Form, Tally], None]:
    """The entry point, without the GIL, cached on disk where any cache folder can be written.

    Args:
        sources: A fingerprint of this folder. numba's cache looks at the time of the one file that holds the function,
            and at the variables in its closure; through this one a change elsewhere in the folder counts too.
    """

    def scan(run: Run, form: Form, tally: Tally) -> None:
        """Every statistic of a run of whole blocks (see :mod:`.geometry`), added to the tally.

        Args:
            run: The elements.
            form: What the elements are.
            tally: Where the results go.
        """
        sources  # noqa: B018 (only so is it in the closure)
        address, numel, length, block = run
        unit = form.unit // form.itemsize
        short = length <= min(unit, block)  # else it takes several units, or several blocks
        rows_at_once = form.unit // LINE // -(-length * form.itemsize // LINE) if short else 1
        row_l1, row_squares, row_zeros = 0.0, 0.0, 0
        for index in range(len(tally.sums)):
            start, stop = index * block, min((index + 1) * block, numel)
            while start < stop:
                size = length if short else min(unit, length - start % length, stop - start)
                rows = min(rows_at_once, (stop - start) // size)
                before = tally.counts[ZEROS]
                zero_rows, l1, squares, most, most_squares = _scan_unit(
                    address + start * form.itemsize, rows, size, form, tally
                )
                tally.sums[index, 0] += l1
                tally.sums[index, 1] += squares
                start += rows * size
                if not short:
                    row_l1 += l1
                    row_squares += squares
                    row_zeros += tally.counts[ZEROS] - before
                    if start % length:
                        continue
                    zero_rows, most, most_squares = np.int64(row_zeros == length), row_l1, row_squares
                    row_l1, row_squares, row_zeros = 0.0, 0.0, 0
                tally.counts[ZERO_ROWS] += zero_rows
                tally.tops[0] = max(tally.tops[0], most)
                tally.tops[1] = max(tally.tops[1], most_squares)

    return jit(scan)


def _fingerprint(folder: Path) -> int:
    return zlib.crc32(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py"))))


scan = _compile(_fingerprint(Path(__file__).parent))
