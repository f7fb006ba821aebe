"""What a survey is to measure, and what it found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.inspect.units import Unit
from gemma_doctor.kernels.formats import why_unmeasured
from gemma_doctor.records import Progress, Skipped
from gemma_doctor.tensors import TensorInfo, TensorStats

__all__ = ["Order", "Survey", "UnitResults"]

UnitResults: TypeAlias = tuple[Unit, list[TensorStats]]
"""A unit, and the record of each of its pieces."""


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
class Order:
    """A survey that is to be made.

    Attributes:
        checkpoint: The checkpoint.
        wanted: Those of the asked tensors that can be measured.
        skipped: The others, and why.
    """

    checkpoint: Checkpoint
    wanted: list[TensorInfo]
    skipped: tuple[Skipped, ...]

    @property
    def asked(self) -> int:
        """How many tensors are asked for."""
        return len(self.wanted) + len(self.skipped)

    @classmethod
    def of(cls, checkpoint: Checkpoint, tensors: Iterable[TensorInfo]) -> Order:
        """The order to measure tensors of a checkpoint to their last element."""
        tensors = list(tensors)
        reasons = {tensor.name: why_unmeasured(tensor.dtype) for tensor in tensors}
        wanted = [tensor for tensor in tensors if reasons[tensor.name] is None]
        return cls(checkpoint, wanted, tuple(Skipped(name, why) for name, why in reasons.items() if why))

    def gathered(self, measured: Iterable[UnitResults], progress: Progress | None = None) -> Survey:
        """What its units add up to.

        Args:
            measured: All units and their records.
            progress: Who is told how far it is.
        """
        stats = {tensor.name: TensorStats() for tensor in self.wanted}
        if progress:
            progress.start(sum(tensor.nbytes for tensor in self.wanted))
        for unit, results in measured:
            for piece, part in zip(unit, results, strict=True):
                known = stats[piece.tensor.name]
                stats[piece.tensor.name] = known.merge(part) if known.count else part  # most have one piece
            if progress:
                progress.advance(sum(piece.nbytes for piece in unit))
        return Survey(stats, self.skipped)
