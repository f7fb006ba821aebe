"""Statistics of many tensors by torch's own reductions: for GPUs and dtypes that the fused kernel does not serve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch

from gemma_doctor.tensors import FP16_FIRST_INF, TensorStats

__all__ = ["enqueue", "nonfinite", "read"]

_NORMAL, _UNDERFLOW = 2.0**-14 - 2.0**-25, 2.0**-25
"""Smallest magnitude that rounds to a normal float16, and largest that rounds to zero (see :mod:`.formats`)."""


def enqueue(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Enqueues the measurement of tensors on the device's current stream; waits for nothing.

    Args:
        tensors: Of one device, of any floating-point dtype that converts to float32, or float64.

    Returns:
        The table, shape (tensors, 9), float64, for :func:`read`.
    """
    return torch.stack([_figures(tensor) for tensor in tensors])


def read(table: torch.Tensor, counts: Sequence[int]) -> list[TensorStats]:
    """The records of a table; waits for the device.

    Args:
        table: What :func:`enqueue` returned.
        counts: Elements of each tensor.
    """
    return [_record(*line) for line in zip(counts, table.tolist(), strict=True)]


def nonfinite(table: torch.Tensor) -> list[int]:
    """NaNs and infinities of each line of a table; waits for the device."""
    return [int(nan + inf) for nan, inf, *_ in table.tolist()]


def _figures(tensor: torch.Tensor) -> torch.Tensor:
    """Figures of one tensor, shape (9,), float64: counts below 2**53 and extremes are exact."""
    if not tensor.numel():
        return torch.zeros(9, dtype=torch.float64, device=tensor.device)
    values = tensor if tensor.dtype is torch.float64 else tensor.float()
    magnitudes, finite = values.abs(), values.isfinite()
    squares = values.where(finite, values.new_zeros(())).double().square()
    figures = [
        values.isnan().sum(),
        values.isinf().sum(),
        (magnitudes == 0).sum(),
        (finite & (magnitudes >= FP16_FIRST_INF)).sum(),
        (magnitudes <= _UNDERFLOW).sum(),
        (magnitudes < _NORMAL).sum(),
        values.where(finite, values.new_full((), math.inf)).amin(),
        values.where(finite, values.new_full((), -math.inf)).amax(),
        squares.sum(),
    ]
    return torch.stack([figure.double() for figure in figures])


def _record(count: int, figures: list[float]) -> TensorStats:
    nan, inf, zeros, overflow, below_kept, below_normal = map(int, figures[:6])
    least, most, squares = figures[6:]
    any_finite = count > nan + inf
    return TensorStats(
        count=count,
        nan=nan,
        inf=inf,
        zeros=zeros,
        fp16_overflow=overflow,
        fp16_subnormal=below_normal - below_kept,
        fp16_underflow=below_kept - zeros,
        minimum=least + 0.0 if any_finite else None,
        maximum=most + 0.0 if any_finite else None,
        squares=Fraction(squares) if math.isfinite(squares) else None,
    )
