"""What rounding adds to a bound, and what a tensor's figures are once a loader has rounded it to float16.

A result in float16 is the exact one times 1 + d with |d| <= u = 2**-11 (round to nearest; what underflows only comes
closer to zero, or lies below every limit by far). Products add up in float32, whatever the order: the sum of n terms
errs by at most n * 2**-24 times the sum of their magnitudes, and that sum is what Hoelder and Cauchy-Schwarz bound.
So each step of a computation in float16 enlarges its bound by a factor:

==================  ===========  ===================================================================================
expression          factor       covers
==================  ===========  ===================================================================================
Linear, Dot         1 + 2**-7    up to 2**16 terms, and a few partial sums in float16 (split-K)
AfterNorm, Matched  1 + 2**-4    squares and their mean in float16, eps beside them (2**-25 each against eps 1e-6)
Pooled, Repeated    1 + 2**-6    attention's weights in float16 add up to at most 1 + u + n * 2**-25 for n positions,
                                 up to 2**17 of them
Rotated, Row,       1 + 2**-9    a rounded factor (cos, sqrt(d)) or two, and the result
Times
others              1 + 2**-10   one or two results
Leaves that are     1            no arithmetic
given; joining
==================  ===========  ===================================================================================
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Literal, TypeAlias

import numpy as np

from gemma_doctor.architectures.expressions import (
    AfterNorm,
    Dot,
    Either,
    Input,
    Joined,
    Linear,
    Matched,
    Pooled,
    Repeated,
    Rotated,
    Row,
    Slice,
    Times,
    Unbounded,
    Within,
)
from gemma_doctor.tensors import FP16_FIRST_INF, MeasuredTensor, TensorStats

__all__ = ["Arithmetic", "elements_in_float16", "growth", "in_float16"]

Arithmetic: TypeAlias = Literal["exact", "float16"]

_GROWTH: Mapping[type[Input], float] = {
    Linear: 1 + 2.0**-7,
    Dot: 1 + 2.0**-7,
    AfterNorm: 1 + 2.0**-4,
    Matched: 1 + 2.0**-4,
    Pooled: 1 + 2.0**-6,
    Repeated: 1 + 2.0**-6,
    Rotated: 1 + 2.0**-9,
    Row: 1 + 2.0**-9,
    Times: 1 + 2.0**-9,
    Within: 1.0,
    Unbounded: 1.0,
    Joined: 1.0,
    Either: 1.0,
    Slice: 1.0,
}
_ELSEWHERE = 1 + 2.0**-10

_UNIT, _LEAST = 2.0**-11, 2.0**-25
"""The most that float16 rounds a normal number by, relative to it, and a subnormal one, absolutely."""


def growth(source: Input, arithmetic: Arithmetic) -> float:
    """The factor by which rounding can enlarge what an expression's last step gives; see the module's table.

    Args:
        source: The expression.
        arithmetic: Exact arithmetic rounds nothing.
    """
    return 1.0 if arithmetic == "exact" else _GROWTH.get(type(source), _ELSEWHERE)


def in_float16(tensor: MeasuredTensor) -> TensorStats:
    """Bounds on the figures of a tensor once a loader has rounded it to float16.

    Extremes are rounded as the elements are, for rounding keeps their order. Sums over a row of n elements grow by at
    most the unit roundoff and n times half the smallest subnormal.

    Args:
        tensor: The tensor as it is stored.

    Returns:
        Its record with these figures; one with infinities where elements become infinite.
    """
    stats = tensor.stats
    if tensor.info.dtype == "F16" or stats.minimum is None or stats.maximum is None:
        return stats
    if stats.absmax is not None and stats.absmax >= FP16_FIRST_INF:
        return replace(stats, inf=stats.inf + stats.fp16_overflow)
    row = math.prod(tensor.info.shape[1:])
    l1, squares = stats.row_l1_max, stats.row_l2_max
    return replace(
        stats,
        minimum=_rounded(stats.minimum),
        maximum=_rounded(stats.maximum),
        squares=_grown(stats.squares, tensor.info.numel),
        row_l1_max=None if l1 is None else l1 * (1 + _UNIT) + row * _LEAST,
        row_squares_max=None if squares is None else (squares * (1 + _UNIT) + math.sqrt(row) * _LEAST) ** 2,
    )


def elements_in_float16(tensor: MeasuredTensor) -> array[float] | None:
    """The elements of a vector once a loader has rounded it to float16; None where they are not known.

    Args:
        tensor: The tensor as it is stored.
    """
    known, absmax = tensor.elements, tensor.stats.absmax
    if known is None or tensor.info.dtype == "F16":
        return known
    if tensor.stats.nan or tensor.stats.inf or absmax is None or absmax >= FP16_FIRST_INF:
        return None
    return array("d", np.asarray(known).astype(np.float16).astype(np.float64).tobytes())


def _rounded(value: float) -> float:
    number: float = struct.unpack("<e", struct.pack("<e", value))[0]
    return number


def _grown(squares: Fraction | None, count: int) -> Fraction | None:
    """The sum of squares: ||x + d||_2 <= (1 + u) ||x||_2 + sqrt(n) * 2**-25."""
    if squares is None:
        return None
    try:
        return Fraction((math.sqrt(squares) * (1 + _UNIT) + math.sqrt(count) * _LEAST) ** 2)
    except OverflowError:
        return None
