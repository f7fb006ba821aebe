"""Law: units hold each byte once, cost no more than they may, and are as full as the blocks allow."""

from __future__ import annotations

import math
from itertools import pairwise
from unittest import mock

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import example, given
from hypothesis import strategies as st

from gemma_doctor.inspect import units
from gemma_doctor.inspect.units import PIECE_COST, UNIT_BYTES, Unit, cut
from gemma_doctor.kernels import geometry
from gemma_doctor.kernels.geometry import Geometry
from gemma_doctor.tensors import TensorInfo

LARGEST_BLOCK = 8 * geometry.BLOCK
"""Bytes: of float64."""

PLAIN = {"U8": (1, 1), "BF16": (1, 2), "F32": (1, 4), "F64": (1, 8)}
QUANTISED = {name: tuple(map(int, GGML_QUANT_SIZES[GGMLQuantizationType[name]])) for name in ("Q4_1", "Q6_K")}


def laid_out(content: list[tuple[str, tuple[int, ...]]]) -> list[TensorInfo]:
    """Tensors that follow each other in a file, of these dtypes and shapes."""
    found, at = [], 96
    for number, (dtype, shape) in enumerate(content):
        elements, nbytes = {**PLAIN, **QUANTISED}[dtype]
        size = math.prod(shape) // elements * nbytes
        found.append(TensorInfo(str(number), dtype, shape, "file", at, at + size))
        at += size
    return found


def cost(unit: Unit) -> int:
    return sum(piece.nbytes + units.PIECE_COST for piece in unit)


def block_bytes(unit: Unit) -> int:
    """Bytes of a block of the tensor that a unit begins with."""
    tensor = unit[0].tensor
    return Geometry.of(tensor.shape).block * tensor.nbytes // tensor.numel


PLAIN_TENSORS = st.tuples(st.sampled_from(sorted(PLAIN)), st.lists(st.integers(0, 90), max_size=3).map(tuple))
ROWS_OF_QUANTS = st.tuples(st.integers(1, 9), st.integers(1, 12)).map(lambda rows: (rows[0], 256 * rows[1]))
QUANTISED_TENSORS = st.tuples(st.sampled_from(sorted(QUANTISED)), ROWS_OF_QUANTS)


@given(
    st.lists(PLAIN_TENSORS | QUANTISED_TENSORS, max_size=30),
    st.sampled_from([1, 500, 4096, 100_000]),
    st.sampled_from([0, 16, 1000]),
)
@example([("F32", (3, 1025)), ("U8", (1,)), ("F64", ())], 4096, 16)
def test_units_hold_each_byte_once_and_are_as_full_as_blocks_allow(
    content: list[tuple[str, tuple[int, ...]]], limit: int, piece_cost: int
) -> None:
    tensors = laid_out(content)
    with mock.patch.object(geometry, "BLOCK", 256), mock.patch.object(units, "PIECE_COST", piece_cost):
        found = list(cut(tensors, limit))
        pieces = [piece for unit in found for piece in unit]
        # Each byte once, and in order: runs of one tensor begin where the last ended.
        assert [piece.tensor for piece in pieces if not piece.first] == [tensor for tensor in tensors if tensor.numel]
        edges = [(piece.start, piece.stop) for piece in pieces]
        assert all(begin < end for begin, end in edges)
        assert [end for _, end in edges[:-1]] == [begin for begin, _ in edges[1:]]
        assert sum(end - begin for begin, end in edges) == sum(tensor.nbytes for tensor in tensors)
        for piece in pieces:
            shape = Geometry.of(piece.tensor.shape)
            period = shape.length if shape.long_rows else shape.numel  # blocks of long rows begin anew in each
            assert piece.first % period % shape.block == 0
            assert piece.last % period % shape.block == 0
        # None is too large, but for one that is a single block.
        for unit in found:
            assert cost(unit) <= limit or (len(unit) == 1 and unit[0].nbytes <= block_bytes(unit))
        # None is smaller than it must be: the next block would not have fitted.
        for unit, following in pairwise(found):
            assert cost(unit) + min(following[0].nbytes, block_bytes(following)) + piece_cost > limit


def test_one_tensor_that_holds_nearly_everything_makes_units_of_the_same_size() -> None:
    """Skewed as models are: an embedding of 1.3 GB among norms and projections."""
    shapes = [(262_144, 2560), *[(2048,), (8192, 2048), (2048, 8192), (256, 2048)] * 26]
    sizes = [cost(unit) for unit in cut(laid_out([("BF16", shape) for shape in shapes]), UNIT_BYTES)]
    assert min(sizes[:-1]) > UNIT_BYTES - LARGEST_BLOCK - PIECE_COST
    assert max(sizes) <= UNIT_BYTES


def test_tiny_tensors_go_together() -> None:
    found = list(cut(laid_out([("F32", (64,))] * 10_000), UNIT_BYTES))
    together = UNIT_BYTES // (256 + PIECE_COST)
    assert [len(unit) for unit in found[:-1]] == [together] * (10_000 // together)


def test_no_tensor_and_empty_tensors_are_no_work() -> None:
    assert not list(cut([], UNIT_BYTES))
    assert not list(cut(laid_out([("F32", (0, 4)), ("F32", (3, 0))]), UNIT_BYTES))
