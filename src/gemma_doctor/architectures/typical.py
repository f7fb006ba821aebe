"""How large a convolution's input typically is, if its channels were independent of each other.

The proved bounds of ``gemma_doctor.architectures.bounds`` add up the worst of every block, so behind a long residual
stream they say little: nearly every convolution *can* overflow. This is the other end, the root mean square that the
gains imply, added in quadrature. It proves nothing; it tells the likely from the merely possible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gemma_doctor.architectures.base import Conv
from gemma_doctor.architectures.expressions import (
    AfterNorm,
    Dot,
    Either,
    Input,
    Joined,
    Leaf,
    Linear,
    Matched,
    Mixture,
    Pooled,
    Product,
    Repeated,
    Rotated,
    Row,
    Scaled,
    Shifted,
    Slice,
    Step,
    Sum,
    Times,
    Unbounded,
    Weighted,
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

    An RMS norm gives each channel an rms of its gain (of 1 + w, with w of mean 0, where it adds one); a row of weights
    multiplies the rms by its Euclidean norm, so a matrix does by the rms of its rows' norms; independent terms of a
    sum add their squares; a mean over positions and GELU do not raise it.

    Args:
        source: What makes the activation.
        tensors: The measured tensors by canonical name.

    Returns:
        The rms; NaN where nothing is known or a tensor was not measured.
    """
    return _Typical(tensors).rms(source)


def cautious_rms(source: Input, tensors: Mapping[str, MeasuredTensor]) -> float:
    """The same from below: what could be large in few channels only, or be scaled away again, counts for nothing.

    A matrix counts without its largest row. A product that goes through a layer scale counts as 0, because a small
    gain may meet just the large rows; so does the larger part of what lies side by side, or may be there instead. It
    is an estimate all the same: independence is assumed, and only a trace measures.

    Args:
        source: What makes the activation.
        tensors: The measured tensors by canonical name.

    Returns:
        The rms; NaN where nothing is known or a tensor was not measured.
    """
    return _Cautious(tensors).rms(source)


@dataclass(frozen=True)  # no slots: they would break super()
class _Typical:
    """The rms of expressions over one set of tensors."""

    tensors: Mapping[str, MeasuredTensor]

    def rms(self, source: Input) -> float:
        """The rms of one expression; NaN where nothing is known."""
        if isinstance(source, Leaf):
            return self._leaf(source)
        if isinstance(source, Step):
            return self._step(source)
        return self._mixture(source)

    def _leaf(self, source: Leaf) -> float:
        match source:
            case Within():
                return source.limit
            case AfterNorm():
                gain = 1.0 if source.gain is None else self._gain(source.gain)
                return math.hypot(1, gain) if source.plus_one else gain
            case Row():
                return source.scale * self._gain(source.table)
            case Unbounded():
                return math.nan

    def _step(self, source: Step) -> float:
        inner = self.rms(source.source)
        match source:
            case Linear():
                return inner * self._matrix(source)
            case Shifted():
                return math.hypot(inner, self._gain(source.bias))
            case Scaled():
                return inner * self._gain(source.gain)
            case Times():
                return inner * abs(source.factor)
            case Pooled() | Repeated() | Slice() | Rotated():
                return inner

    def _mixture(self, source: Mixture) -> float:
        match source:
            case Sum():
                return math.sqrt(sum(self.rms(term) ** 2 for term in source.terms))
            case Joined(parts) | Either(parts):
                return self._chosen([self.rms(part) for part in parts])
            case Product(left, right) | Weighted(left, right):
                return self.rms(left) * self.rms(right)
            case Matched():
                return self.rms(source.like)
            case Dot():
                return math.nan  # the number of channels is not known

    def _chosen(self, parts: list[float]) -> float:
        return math.nan if any(map(math.isnan, parts)) else max(parts)

    def _gain(self, name: str) -> float:
        tensor = self.tensors.get(name)
        rms = tensor.stats.rms if tensor else None
        return math.nan if rms is None else rms

    def _matrix(self, source: Linear) -> float:
        return _rows_rms(self.tensors.get(source.weight), source, left_out=0.0)


@dataclass(frozen=True)
class _Cautious(_Typical):
    """The same from below."""

    def _step(self, source: Step) -> float:
        if isinstance(source, Scaled) and isinstance(source.source, Linear):
            return 0.0 * self._gain(source.gain)  # NaN stays NaN
        return super()._step(source)

    def _chosen(self, parts: list[float]) -> float:
        return math.nan if any(map(math.isnan, parts)) else min(parts)

    def _matrix(self, source: Linear) -> float:
        tensor = self.tensors.get(source.weight)
        return _rows_rms(tensor, source, left_out=(tensor.stats.row_squares_max or 0.0) if tensor else 0.0)


def _rows_rms(tensor: MeasuredTensor | None, source: Linear, *, left_out: float) -> float:
    """Rms of the norms of what each output reads, with so much taken from their squares."""
    if tensor is None or tensor.stats.squares is None or not tensor.info.shape:
        return math.nan
    outputs = tensor.info.shape[0] if source.inputs is None else tensor.info.shape[-1]
    return math.sqrt(max(0.0, float(tensor.stats.squares) - left_out) / outputs)
