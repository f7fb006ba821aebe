"""The work of a survey, cut into units of as many bytes: small tensors together, large ones in chunks.

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
        last: Index one past its last element.
        start: Offset of its first byte in the file.
        stop: Offset one past its last byte.
    """

    tensor: TensorInfo
    first: int
    last: int
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return self.stop - self.start


Unit: TypeAlias = tuple[Piece, ...]


def cut(tensors: Iterable[TensorInfo], unit_bytes: int) -> Iterator[Unit]:
    """The work, in the order of the tensors, in units of the same cost: bytes, and ``PIECE_COST`` for each piece.

    Every element is in one unit. No unit costs more than ``unit_bytes``, unless it is a single block (see
    :mod:`gemma_doctor.kernels.geometry`); and all but the last cost so much that what follows would not fit.

    Args:
        tensors: What is to be measured.
        unit_bytes: Most bytes of a unit.
    """
    unit: list[Piece] = []
    room = unit_bytes
    for tensor in tensors:
        first = 0
        while first < tensor.numel:
            piece = _piece(tensor, first, room - PIECE_COST)
            if unit and piece.nbytes + PIECE_COST > room:
                yield tuple(unit)
                unit, room = [], unit_bytes
                continue
            unit.append(piece)
            room -= piece.nbytes + PIECE_COST
            first = piece.last
    if unit:
        yield tuple(unit)


def _piece(tensor: TensorInfo, first: int, room: int) -> Piece:
    """The run of whole blocks from an element on that fills so many bytes; one block where none fits."""
    geometry = Geometry.of(tensor.shape)
    numel, nbytes = tensor.numel, max(1, tensor.nbytes)
    stop = geometry.edge(first, max(0, room) * numel // nbytes)
    # An edge is a whole number of bytes, quantised or not.
    begin, end = (tensor.start + element * tensor.nbytes // numel for element in (first, stop))
    return Piece(tensor, first, stop, begin, end)


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
