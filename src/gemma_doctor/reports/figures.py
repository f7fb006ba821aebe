"""The figures of a tensor's numbers as JSON: written and read back, for weights and for activations alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from gemma_doctor.nodes import Node
from gemma_doctor.tensors import TensorStats

__all__ = ["figures", "read_figures", "read_rows", "rows", "strict"]


def figures(stats: TensorStats) -> dict[str, Any]:
    """What the numbers of any tensor are; ``numel`` says how many they are."""
    return {
        "numel": stats.count,
        "absmax": strict(stats.absmax),
        "min": strict(stats.minimum),
        "max": strict(stats.maximum),
        "nan": stats.nan,
        "inf": stats.inf,
        "zeros": stats.zeros,
        "fp16_overflow": stats.fp16_overflow,
        "fp16_subnormal": stats.fp16_subnormal,
        "fp16_underflow": stats.fp16_underflow,
        "rms": strict(stats.rms),
    }


def rows(stats: TensorStats) -> dict[str, Any]:
    """What the rows of a weight are: its output channels. The first axis of an activation means nothing of the kind."""
    return {
        "zero_rows": stats.zero_rows,
        "row_l1_max": strict(stats.row_l1_max),
        "row_l2_max": strict(stats.row_l2_max),
    }


def read_figures(node: Node) -> TensorStats:
    """The record that :func:`figures` has written."""
    numel, nan, inf = (node.member(key).count() for key in ("numel", "nan", "inf"))
    rms = node.member("rms").maybe(Node.number)
    return TensorStats(
        count=numel,
        nan=nan,
        inf=inf,
        zeros=node.member("zeros").count(),
        fp16_overflow=node.member("fp16_overflow").count(),
        fp16_subnormal=node.member("fp16_subnormal").count(),
        fp16_underflow=node.member("fp16_underflow").count(),
        minimum=node.member("min").maybe(Node.number),
        maximum=node.member("max").maybe(Node.number),
        # The square of a correctly rounded root has that same root, so the written norms survive.
        squares=None if rms is None else Fraction(rms) ** 2 * (numel - nan - inf),
    )


def read_rows(node: Node, stats: TensorStats) -> TensorStats:
    """The record with what :func:`rows` has written."""
    row_l2 = node.member("row_l2_max").maybe(Node.number)
    return replace(
        stats,
        zero_rows=node.member("zero_rows").count(),
        row_l1_max=node.member("row_l1_max").maybe(Node.number),
        row_squares_max=None if row_l2 is None else row_l2 * row_l2,
    )


def strict(value: Any) -> Any:  # noqa: ANN401  # JSON values
    """``value`` with lists for tuples and None for floats that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return value
