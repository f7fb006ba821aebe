"""What is known of a checkpoint, its tied head compared, its streams' gains read: for rules and for plans."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gemma_doctor.architectures.ranges import stream_gains
from gemma_doctor.checkpoint import open_bytes, sha256
from gemma_doctor.examination import Examination
from gemma_doctor.repair.elements.floats import CASTS, FORMS, widen
from gemma_doctor.tensors import MeasuredTensor

__all__ = ["looked_into"]

_MOST_ELEMENTS = 1 << 16  # of a vector that is kept: no model has more channels


def looked_into(known: Examination) -> Examination:
    """The same with what asks for bytes once more: whether a tied head is its embedding, and a stream's gains.

    Args:
        known: What headers and figures say.

    Raises:
        CheckpointError: If they cannot be read.
    """
    return replace(known, tied_head_equal=_tied_head_equal(known), tensors=_with_elements(known))


def _with_elements(known: Examination) -> Mapping[str, MeasuredTensor]:
    """The measured tensors, those few vectors read once more of which each element bounds a channel of a stream."""
    if known.target_dtype != "float16":
        return known.tensors
    named = (known.measured(name) for name in stream_gains(known.model))
    wanted = [one for one in named if one is not None and _is_short_vector(one)]
    if not wanted:
        return known.tensors
    with open_bytes(known.checkpoint) as files:
        raw = files.read_all([(one.info.file, one.info.start, one.info.stop) for one in wanted])
        found = {one.info.name: _elements(data, one.info.dtype) for one, data in zip(wanted, raw, strict=True)}
    return {name: replace(tensor, elements=found.get(name)) for name, tensor in known.tensors.items()}


def _is_short_vector(tensor: MeasuredTensor) -> bool:
    return len(tensor.info.shape) == 1 and tensor.info.dtype in CASTS and tensor.info.numel <= _MOST_ELEMENTS


def _elements(data: npt.NDArray[np.uint8], dtype: str) -> array[float]:
    return array("d", widen(np.frombuffer(data.tobytes(), FORMS[dtype].word), dtype).tobytes())


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
