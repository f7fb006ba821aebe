"""One pass over the bytes: from headers to ``{name: TensorStats}``, on as many threads as there are cores.

The work is cut into units of about ``UNIT_BYTES``: many small tensors, or a chunk of a large one. A unit's result
does not depend on the others, and results merge exactly (see ``TensorStats``), so their order does not matter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from gemma_doctor.checkpoint import Checkpoint, FileBytes
from gemma_doctor.cores import cores
from gemma_doctor.kernels.formats import why_unmeasured
from gemma_doctor.kernels.geometry import Geometry
from gemma_doctor.kernels.measure import measure
from gemma_doctor.records import Progress, Skipped
from gemma_doctor.tensors import TensorInfo, TensorStats

__all__ = ["Survey", "survey"]

UNIT_BYTES = 32 << 20
"""Bytes that one task measures: long enough to hide its overhead, short enough for progress and balance."""

PIECE_COST = 1 << 17
"""What one more piece costs beside its bytes, in bytes measured meanwhile."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a survey found.

    Attributes:
        stats: The finished record of every measured tensor, in the order asked for.
        skipped: The tensors that cannot be measured, and why.
    """

    stats: Mapping[str, TensorStats]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
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


Unit: TypeAlias = tuple[_Piece, ...]


def survey(
    checkpoint: Checkpoint,
    tensors: Iterable[TensorInfo],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Measures tensors to their last element.

    Args:
        checkpoint: The checkpoint that holds them.
        tensors: Which ones.
        jobs: Threads; None for one per core that this process may use.
        progress: Who is told how far it is.

    Raises:
        ChangedError: If a file changes meanwhile; nothing measured then counts.
        CheckpointError: If a file cannot be read.
    """
    tensors = list(tensors)
    skipped = [Skipped(t.name, why) for t in tensors if (why := why_unmeasured(t.dtype))]
    unmeasured = {skip.tensor for skip in skipped}
    wanted = [tensor for tensor in tensors if tensor.name not in unmeasured]
    stats = {tensor.name: TensorStats() for tensor in wanted}
    if progress:
        progress.start(sum(tensor.nbytes for tensor in wanted))
    threads = jobs or cores()
    with FileBytes(checkpoint) as files, ThreadPoolExecutor(threads) as pool:
        for unit, results in _in_order(pool, files, _units(wanted), ahead=4 * threads):
            for piece, part in zip(unit, results, strict=True):
                known = stats[piece.tensor.name]
                stats[piece.tensor.name] = known.merge(part) if known.count else part  # most have one piece
            if progress:
                progress.advance(sum(piece.nbytes for piece in unit))
    return Survey(stats, tuple(skipped))


def _units(tensors: Iterable[TensorInfo]) -> Iterator[Unit]:
    """The work, cut into units of about ``UNIT_BYTES``, in the order of the tensors."""
    unit: list[_Piece] = []
    size = 0
    for tensor in tensors:
        for piece in _pieces(tensor):
            unit.append(piece)
            size += piece.nbytes + PIECE_COST
            if size >= UNIT_BYTES:
                yield tuple(unit)
                unit, size = [], 0
    if unit:
        yield tuple(unit)


def _pieces(tensor: TensorInfo) -> Iterator[_Piece]:
    """One tensor, cut at the edges of its blocks; nothing for an empty one."""
    geometry = Geometry.of(tensor.shape)
    if 0 < tensor.nbytes <= UNIT_BYTES and not geometry.long_rows:
        yield _Piece(tensor, 0, tensor.start, tensor.stop)
        return
    # An edge is a whole number of bytes, quantised or not.
    numel, nbytes = max(1, tensor.numel), max(1, tensor.nbytes)
    for first, stop in geometry.edges(UNIT_BYTES * numel // nbytes):
        begin, end = (tensor.start + element * tensor.nbytes // numel for element in (first, stop))
        yield _Piece(tensor, first, begin, end)


def _in_order(
    pool: ThreadPoolExecutor, files: FileBytes, units: Iterator[Unit], ahead: int
) -> Iterator[tuple[Unit, list[TensorStats]]]:
    """Measures units on the pool and yields their results in order; at most ``ahead`` are under way."""
    under_way = deque((unit, pool.submit(_measure, files, unit)) for unit in islice(units, ahead))
    while under_way:
        unit, future = under_way.popleft()
        result = future.result()
        under_way.extend((unit, pool.submit(_measure, files, unit)) for unit in islice(units, 1))
        yield unit, result


def _measure(files: FileBytes, unit: Unit) -> list[TensorStats]:
    """The records of a unit's pieces."""
    return [_measure_piece(files, piece) for piece in unit]


def _measure_piece(files: FileBytes, piece: _Piece) -> TensorStats:
    tensor = piece.tensor
    return measure(files.read(tensor.file, piece.start, piece.stop), tensor.dtype, tensor.shape, piece.first)
