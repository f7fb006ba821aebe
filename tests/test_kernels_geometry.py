"""Law: the edges cut a tensor into runs of whole blocks, each element in one of them, in order."""

from __future__ import annotations

import math
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_doctor.kernels import geometry
from gemma_doctor.kernels.geometry import BLOCK, Geometry

SHAPES = st.lists(st.integers(0, 40), max_size=4).map(tuple)


@given(SHAPES, st.sampled_from([1, 7, 64, 1000]), st.integers(0, 3000))
def test_the_edges_partition_every_tensor(shape: tuple[int, ...], block: int, chunk: int) -> None:
    with mock.patch.object(geometry, "BLOCK", block):
        cut = Geometry.of(shape)
        edges = list(cut.edges(chunk))
        starts, stops = [0, *(stop for _, stop in edges)], [*(first for first, _ in edges), math.prod(shape)]
        assert starts == stops
        for first, stop in edges:
            assert first < stop
            assert stop - first <= max(chunk, cut.block)
            rest = (stop - first) % cut.block
            if cut.long_rows:
                assert first // cut.length == (stop - 1) // cut.length
                assert (first % cut.length) % block == 0
                assert rest == 0 or stop % cut.length == 0
            else:
                assert cut.block <= max(block, cut.length)
                assert first % cut.block == 0
                assert rest == 0 or stop == cut.numel
            assert cut.blocks(stop - first) == math.ceil((stop - first) / cut.block)


@pytest.mark.parametrize(
    ("shape", "rows", "length", "has_rows"),
    [
        ((), 1, 1, False),
        ((5,), 1, 5, False),
        ((0,), 1, 0, False),
        ((5, 1), 5, 1, True),
        ((4, 3, 2, 2), 4, 12, True),
        ((4, 0), 4, 0, True),
    ],
)
def test_rows_are_output_channels(shape: tuple[int, ...], rows: int, length: int, has_rows: bool) -> None:  # noqa: FBT001
    cut = Geometry.of(shape)
    assert (cut.rows, cut.length, cut.has_rows, cut.numel) == (rows, length, has_rows, math.prod(shape))


def test_short_rows_share_a_block_and_long_rows_take_several() -> None:
    assert list(Geometry.of((5, BLOCK // 2 - 1)).edges(1)) == [
        (0, BLOCK - 2),
        (BLOCK - 2, 2 * BLOCK - 4),
        (2 * BLOCK - 4, 5 * (BLOCK // 2 - 1)),
    ]
    assert list(Geometry.of((2, BLOCK + 3)).edges(1)) == [
        (0, BLOCK),
        (BLOCK, BLOCK + 3),
        (BLOCK + 3, 2 * BLOCK + 3),
        (2 * BLOCK + 3, 2 * BLOCK + 6),
    ]
    assert list(Geometry.of((2, BLOCK)).edges(1 << 62)) == [(0, 2 * BLOCK)]
