"""How large a convolution's input typically is, if its channels were independent of each other.

The proved bounds of ``gemma_doctor.architectures.bounds`` add up the worst of every block, so behind a long residual
stream they say little: nearly every convolution *can* overflow. This is the other end, the root mean square that the
gains imply, added in quadrature. It proves nothing; it tells the likely from the merely possible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gemma_doctor.architectures.base import (
    AfterNorm,
    Conv,
    Input,
    Joined,
    Linear,
    Pooled,
    Repeated,
    Scaled,
    Sum,
    Unbounded,
    Within,
)
from gemma_doctor.tensors import MeasuredTensor

__all__ = ["REACH", "cautious_rms", "row_spread", "typical_rms"]

REACH = 16.0
"""How many times its rms an output is taken to reach."""

_ASSUMED_RMS = 1.0  # of an input whose norm's gain was not measured


def row_spread(conv: Conv, weight: MeasuredTensor, tensors: Mapping[str, MeasuredTensor]) -> float:
    """Typical rms of a convolution's largest output channel: its input's typical rms times the largest ||W_j||_2.

    Args:
        conv: The convolution; an input of rms 1 is assumed where nothing is known about it.
        weight: Its weight.
        tensors: The measured tensors by canonical name.
    """
    rms = typical_rms(conv.source, tensors)
    return (_ASSUMED_RMS if math.isnan(rms) else rms) * (weight.stats.row_l2_max or 0.0)


def typical_rms(source: Input, tensors: Mapping[str, MeasuredTensor]) -> float:
    """Root mean square of an activation over its channels, under independence.

    An RMS norm gives each channel an rms of its gain; a row of weights multiplies the rms by its Euclidean norm, so a
    matrix does by the rms of its rows' norms; independent terms of a sum add their squares; a mean over positions and
    GELU do not raise it.

    Args:
        source: What makes the activation.
        tensors: The measured tensors by canonical name.

    Returns:
        The rms; NaN where nothing is known or a tensor was not measured.
    """
    rms = math.nan
    match source:
        case Within():
            rms = source.limit
        case AfterNorm():
            rms = _gain(tensors.get(source.gain))
        case Scaled():
            rms = typical_rms(source.source, tensors) * _gain(tensors.get(source.gain))
        case Linear():
            rms = typical_rms(source.source, tensors) * _matrix(tensors.get(source.weight))
        case Sum():
            rms = math.sqrt(sum(typical_rms(term, tensors) ** 2 for term in source.terms))
        case Joined():
            parts = [typical_rms(part, tensors) for part in source.parts]
            rms = math.nan if any(map(math.isnan, parts)) else max(parts)
        case Pooled() | Repeated():
            rms = typical_rms(source.source, tensors)
        case Unbounded():
            pass
    return rms


def cautious_rms(source: Input, tensors: Mapping[str, MeasuredTensor]) -> float:
    """The same from below: what could be large in few channels only, or be scaled away again, counts for nothing.

    A matrix counts without its largest row. A product that goes through a layer scale counts as 0, because a small
    gain may meet just the large rows; so does the larger part of what lies side by side. It is an estimate all the
    same: independence is assumed, and only a trace measures.

    Args:
        source: What makes the activation.
        tensors: The measured tensors by canonical name.

    Returns:
        The rms; NaN where nothing is known or a tensor was not measured.
    """
    rms = math.nan
    match source:
        case Scaled():
            rms = 0.0 if isinstance(source.source, Linear) else cautious_rms(source.source, tensors)
            rms *= _gain(tensors.get(source.gain))
        case Linear():
            rms = cautious_rms(source.source, tensors) * _matrix(tensors.get(source.weight), but_largest_row=True)
        case Sum():
            rms = math.sqrt(sum(cautious_rms(term, tensors) ** 2 for term in source.terms))
        case Joined():
            parts = [cautious_rms(part, tensors) for part in source.parts]
            rms = math.nan if any(map(math.isnan, parts)) else min(parts)
        case Pooled() | Repeated():
            rms = cautious_rms(source.source, tensors)
        case Within() | AfterNorm() | Unbounded():
            rms = typical_rms(source, tensors)
    return rms


def _gain(tensor: MeasuredTensor | None) -> float:
    rms = tensor.stats.rms if tensor else None
    return math.nan if rms is None else rms


def _matrix(tensor: MeasuredTensor | None, *, but_largest_row: bool = False) -> float:
    """Rms of the rows' norms."""
    if tensor is None or tensor.stats.squares is None or not tensor.info.shape:
        return math.nan
    left_out = (tensor.stats.row_squares_max or 0.0) if but_largest_row else 0.0
    return math.sqrt(max(0.0, float(tensor.stats.squares) - left_out) / tensor.info.shape[0])
