"""Laws of ``TensorStats``: a commutative monoid, exactly, so that no cut and no order changes a tensor's record.

``==`` compares every float bit by bit here (no record holds a NaN, and none a negative zero).
"""

from __future__ import annotations

import random
from fractions import Fraction
from functools import reduce
from unittest import mock

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensors import Tensor, agree, chunks, item_size, large, small, whole

from gemma_doctor.kernels import geometry
from gemma_doctor.kernels.geometry import BLOCK
from gemma_doctor.tensors import OpenRow, TensorStats

EMPTY = TensorStats()
FLOATS = ("F64", "F32", "BF16", "F16", "F8_E4M3", "I32")


@st.composite
def cut(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """A tensor, a size of blocks that makes its rows long or short, and a size of chunks."""
    tensor = draw(small(FLOATS) | large(FLOATS, most=2000))
    block = draw(st.sampled_from([1 << 4, 1 << 7, 1 << 10]))
    return tensor, block, draw(st.sampled_from([1, 50, 200, 1500]))


def together(parts: list[TensorStats], seed: int) -> TensorStats:
    """The merge of all parts, in a random order, along a random tree."""
    rng = random.Random(seed)
    left = rng.sample(parts, len(parts))
    while len(left) > 1:
        at = rng.randrange(len(left) - 1)
        left[at : at + 2] = [left[at].merge(left[at + 1])]
    return left[0] if left else EMPTY


@given(cut(), st.integers(0, 2**32))
def test_no_cut_and_no_order_changes_a_record(drawn: tuple[Tensor, int, int], seed: int) -> None:
    tensor, block, chunk = drawn
    with mock.patch.object(geometry, "BLOCK", block):
        parts = chunks(tensor, chunk)
        reference = whole(tensor)
    assert together(parts, seed) == reference
    agree(reference, oracle.measure(tensor.raw, tensor.dtype, tensor.shape))


@given(cut(), st.integers(0, 2**32))
def test_a_commutative_monoid(drawn: tuple[Tensor, int, int], seed: int) -> None:
    tensor, block, _ = drawn
    with mock.patch.object(geometry, "BLOCK", block):
        parts = chunks(tensor, 1)
    rng = random.Random(seed)
    thirds: list[list[TensorStats]] = [[], [], []]
    for part in parts:
        rng.choice(thirds).append(part)
    a, b, c = (reduce(TensorStats.merge, third, EMPTY) for third in thirds)
    assert a.merge(EMPTY) == a == EMPTY.merge(a)
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c)) == a.merge(c.merge(b))


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F8_E5M2", "I8", "F8_E8M0"])
def test_real_blocks_in_any_order(dtype: str) -> None:
    """Rows of more than two real blocks; the property above shrinks blocks instead."""
    shape = (2, 2 * BLOCK + 77)
    tensor = Tensor(dtype, shape, np.random.default_rng(3).bytes(2 * shape[1] * item_size(dtype)))
    parts = chunks(tensor, 1)
    assert len(parts) == 6
    reference = whole(tensor)
    assert reduce(TensorStats.merge, reversed(parts), EMPTY) == reference
    assert reduce(TensorStats.merge, [parts[i] for i in (1, 4, 2, 5, 0, 3)], EMPTY) == reference
    assert reference.open_rows == ()


# Rows of which a part is missing


def row(index: int, seen: int, zeros: int, l1: int, squares: int) -> TensorStats:
    """The record of a part of a row of ten elements."""
    part = OpenRow(index, 10, seen, zeros, Fraction(l1), Fraction(squares))
    return TensorStats(count=seen, zeros=zeros, squares=Fraction(squares), open_rows=(part,))


def test_a_row_counts_when_its_last_part_comes() -> None:
    first, second, third = row(3, 4, 0, 7, 9), row(3, 5, 5, 0, 0), row(3, 1, 0, 2, 4)
    other = row(1, 6, 6, 0, 0)
    some = first.merge(second).merge(other)
    assert [(part.row, part.seen) for part in some.open_rows] == [(1, 6), (3, 9)]
    assert (some.row_l1_max, some.row_l2_max, some.zero_rows) == (None, None, 0)
    most = some.merge(third)
    assert [(part.row, part.seen) for part in most.open_rows] == [(1, 6)]
    assert (most.row_l1_max, most.row_squares_max, most.zero_rows) == (9.0, 13.0, 0)
    done = most.merge(row(1, 4, 4, 0, 0))
    assert (done.row_l1_max, done.row_squares_max, done.zero_rows, done.open_rows) == (9.0, 13.0, 1, ())
    assert (done.count, done.zeros, done.squares) == (20, 15, Fraction(13))


def test_sums_beyond_float64_are_infinite_and_their_squares_unknown() -> None:
    huge = 1 << 1023
    whole_row = row(0, 5, 0, huge, huge).merge(row(0, 5, 0, huge, huge))
    assert (whole_row.row_l1_max, whole_row.row_l2_max) == (float("inf"), float("inf"))
    assert whole_row.rms is not None
    lost = TensorStats(count=1, squares=None)
    assert (lost.rms, lost.merge(row(0, 1, 0, 1, 1)).squares, row(0, 1, 0, 1, 1).merge(lost).rms) == (None, None, None)


def test_what_has_no_finite_element_has_no_figures() -> None:
    stats = TensorStats(count=3, nan=2, inf=1)
    assert (stats.finite, stats.absmax, stats.rms, stats.row_l2_max) == (0, None, None, None)
