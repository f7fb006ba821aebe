"""The work of a survey, cut into units of bytes: many small tensors, or a chunk of a large one.

A unit's result does not depend on the others, and results merge exactly (see ``TensorStats``), so neither their sizes
nor their order nor the place where they are measured matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from gemma_doctor.checkpoint import TensorBytes
from gemma_doctor.kernels.geometry import Geometry
from gemma_doctor.kernels.measure import measure
from gemma_doctor.tensors import TensorInfo, TensorStats

__all__ = ["UNIT_BYTES", "Piece", "Unit", "cut", "measure_unit"]

UNIT_BYTES = 32 << 20
"""Bytes that a thread measures at once: long enough to hide its overhead, short enough for progress and balance."""

PIECE_COST = 1 << 17
"""What one more piece costs beside its bytes, in bytes measured meanwhile."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of whole blocks of one tensor.

    Attributes:
        tensor: The tensor.
        first: Index of its first element within the tensor.
        start: Offset of its first byte in the file.
        stop: Offset one past its last byte.
    """

    tensor: TensorInfo
    first: int
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return self.stop - self.start


Unit: TypeAlias = tuple[Piece, ...]


def cut(tensors: Iterable[TensorInfo], unit_bytes: int) -> Iterator[Unit]:
    """The work, in units of about ``unit_bytes``, in the order of the tensors.

    Args:
        tensors: What is to be measured.
        unit_bytes: Bytes of a unit.
    """
    unit: list[Piece] = []
    size = 0
    for tensor in tensors:
        for piece in _pieces(tensor, unit_bytes):
            unit.append(piece)
            size += piece.nbytes + PIECE_COST
            if size >= unit_bytes:
                yield tuple(unit)
                unit, size = [], 0
    if unit:
        yield tuple(unit)


def _pieces(tensor: TensorInfo, unit_bytes: int) -> Iterator[Piece]:
    """One tensor, cut at the edges of its blocks; nothing for an empty one."""
    geometry = Geometry.of(tensor.shape)
    if 0 < tensor.nbytes <= unit_bytes and not geometry.long_rows:
        yield Piece(tensor, 0, tensor.start, tensor.stop)
        return
    # An edge is a whole number of bytes, quantised or not.
    numel, nbytes = max(1, tensor.numel), max(1, tensor.nbytes)
    for first, stop in geometry.edges(unit_bytes * numel // nbytes):
        begin, end = (tensor.start + element * tensor.nbytes // numel for element in (first, stop))
        yield Piece(tensor, first, begin, end)


def measure_unit(files: TensorBytes, unit: Unit) -> list[TensorStats]:
    """The records of a unit's pieces.

    Args:
        files: The open bytes of the checkpoint.
        unit: What to measure.

    Raises:
        ChangedError: If a file is not what it was when its header was read, or is gone.
        CheckpointError: If a file cannot be read.
    """
    arrays = files.read_all([(piece.tensor.file, piece.start, piece.stop) for piece in unit])
    return [
        measure(array, piece.tensor.dtype, piece.tensor.shape, piece.first)
        for piece, array in zip(unit, arrays, strict=True)
    ]
