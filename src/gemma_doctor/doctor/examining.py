"""What is known of a checkpoint, its tied head compared: what rules judge, and what a plan goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gemma_doctor.checkpoint import Checkpoint, sha256
from gemma_doctor.examination import Examination, assemble
from gemma_doctor.records import Loader, TargetDtype
from gemma_doctor.tensors import TensorStats

__all__ = ["examine"]


def examine(
    checkpoint: Checkpoint,
    stats: Mapping[str, TensorStats],
    target_dtype: TargetDtype,
    loader: Loader,
    *,
    whole: bool,
) -> Examination:
    """Everything that is known once the tensors are measured.

    Args:
        checkpoint: Headers, config and file faults.
        stats: The figures of the measured tensors by their name on disk, in model order.
        target_dtype: The dtype that the weights are judged for.
        loader: The loader that the tensors must satisfy.
        whole: Whether every tensor of the headers was selected.

    Raises:
        CheckpointError: If a head and its embedding, read once more to be compared, cannot be.
    """
    known = assemble(checkpoint, stats, target_dtype, loader, whole=whole)
    return replace(known, tied_head_equal=_tied_head_equal(known))


def _tied_head_equal(known: Examination) -> bool | None:
    """Whether a stored head holds the bytes of the embedding that it is tied to; None where that cannot be said."""
    if known.model.tied_head is None:
        return None
    head, embedding = map(known.measured, known.model.tied_head)
    if head is None or embedding is None or head.info.dtype != embedding.info.dtype:
        return None
    if head.info.shape != embedding.info.shape or head.stats != embedding.stats:
        return False
    return sha256(known.checkpoint, head.info) == sha256(known.checkpoint, embedding.info)
