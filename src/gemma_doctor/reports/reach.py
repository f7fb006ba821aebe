"""Where the numbers of a tensor lie in float16's range, and the tensors for which that matters most."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gemma_doctor.choices import SEVERITIES, Severity
from gemma_doctor.records import Finding
from gemma_doctor.tensors import FP16_FIRST_INF, FP16_MAX, MeasuredTensor

__all__ = ["ZONES", "Share", "along", "gravest", "shares", "worst"]

ZONES: tuple[tuple[str, float, float], ...] = (
    ("flushed", 2.0**-32, 2.0**-25),
    ("subnormal", 2.0**-25, 2.0**-14),
    ("normal", 2.0**-14, FP16_FIRST_INF),
    ("overflow", FP16_FIRST_INF, 2.0**20),
)
"""float16's range by magnitude (IEEE 754 binary16): kind, from, to. The outer ends are the drawing's."""

_SEVERE = len(SEVERITIES)


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a tensor's elements that float16 treats alike.

    Attributes:
        kind: What it does to them, a word for style sheets.
        label: The same in words.
        count: How many they are.
        start: Share of the elements before them, from 0 to 1.
        share: Their own share.
    """

    kind: str
    label: str
    count: int
    start: float
    share: float


def shares(tensor: MeasuredTensor) -> list[Share]:
    """All elements by what float16 does to them, without empty parts. Law: the counts add up to the elements."""
    stats = tensor.stats
    lost = stats.nan + stats.inf + stats.zeros + stats.fp16_underflow + stats.fp16_subnormal + stats.fp16_overflow
    counts = (
        ("zero", "zero", stats.zeros),
        ("flushed", "flushed to zero", stats.fp16_underflow),
        ("subnormal", "subnormal", stats.fp16_subnormal),
        ("normal", "normal", max(stats.count - lost, 0)),
        ("overflow", "becomes inf", stats.fp16_overflow),
        ("broken", "NaN or inf", stats.nan + stats.inf),
    )
    found: list[Share] = []
    before = 0
    for kind, label, count in counts:
        if count:
            found.append(Share(kind, label, count, before / stats.count, count / stats.count))
        before += count
    return found


def gravest(findings: Iterable[Finding]) -> dict[str, Severity]:
    """The gravest severity found of each tensor that a finding concerns."""
    found: dict[str, Severity] = {}
    for finding in findings:
        if finding.tensor is not None:
            known = found.get(finding.tensor, finding.severity)
            found[finding.tensor] = min(known, finding.severity, key=SEVERITIES.index)
    return found


def worst(tensors: Iterable[MeasuredTensor], severities: Mapping[str, Severity], most: int) -> list[MeasuredTensor]:
    """The floating-point tensors that float16 fits worst.

    Tensors of zeros fit. First come those with NaN, inf or overflow; then the gravest finding counts, then the largest
    magnitude against the tensor's limit.
    """

    def key(tensor: MeasuredTensor) -> tuple[bool, int, float]:
        stats, severity = tensor.stats, severities.get(tensor.info.name)
        rank = _SEVERE if severity is None else SEVERITIES.index(severity)
        room = (stats.absmax or 0.0) / (tensor.limit or FP16_MAX)
        return not (stats.nan + stats.inf + stats.fp16_overflow), rank, -room

    floats = (tensor for tensor in tensors if tensor.info.is_float and tensor.stats.zeros < tensor.stats.count)
    return sorted(floats, key=key)[:most]


def along(magnitude: float | None) -> float | None:
    """How far along the drawn range a magnitude lies, from 0 to 1, by its logarithm; None for 0 and None."""
    if not magnitude:
        return None
    low, high = math.log2(ZONES[0][1]), math.log2(ZONES[-1][2])
    return min(max((math.log2(magnitude) - low) / (high - low), 0.0), 1.0)
