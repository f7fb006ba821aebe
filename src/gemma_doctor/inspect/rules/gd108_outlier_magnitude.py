"""GD108 outlier-magnitude: a tensor is far larger than others of its kind.

## What it checks

The largest finite magnitude of each tensor against those of all tensors of the same role (convolution, linear, norm,
embedding, bias), by a robust z-score of its binary logarithm: `0.6745 * (x - median) / MAD`, where MAD is the median
absolute deviation (Iglewicz and Hoaglin, *How to Detect and Handle Outliers*, 1993). The finding comes at 7, twice
their cut. MAD counts as at least 0.4 bits, so nothing below 18 times the median is ever reported.

## Why it matters

By itself it is not a fault, hence a note: some tensors are large for a reason. But trouble in float16 begins in such
places, and a step that went wrong in training or merging shows here first.

## Example

Gemma 3n's vision encoder as published: `msfa.ffn.pw_proj.conv.weight` reaches 98, and the next one 37.

## How to mend

See what GD104 says about it, and compare the tensor with the checkpoint that this one was made from.

## Limits

Only large tensors are reported, not small ones. Roles with fewer than 8 tensors have no meaningful spread and are left
out, and so are tensors whose role is unknown. The largest magnitude does not tell whether anything overflows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule
from gemma_doctor.tensors import MeasuredTensor

__all__ = ["RULE"]

THRESHOLD = 7.0
"""Least robust z-score that is reported: twice the 3.5 of Iglewicz and Hoaglin."""

LEAST_GROUP = 8
"""Fewest tensors of a role that are compared."""

LEAST_MAD = 0.4
"""Bits: 7 * 0.4 / 0.6745 = 4.15 bits, a factor of 18, is the least that can be reported."""

NORMAL = 0.6745
"""MAD of a standard normal distribution."""


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each tensor that is an outlier among those of its role."""
    groups: dict[str, list[MeasuredTensor]] = defaultdict(list)
    for tensor in exam.floats():
        if tensor.stats.absmax and tensor.role != "other":
            groups[tensor.role].append(tensor)
    for group in groups.values():
        if len(group) >= LEAST_GROUP:
            yield from _outliers(group)


def _outliers(group: Sequence[MeasuredTensor]) -> Iterator[Finding]:
    bits = [math.log2(tensor.stats.absmax or 1) for tensor in group]
    middle = median(bits)
    spread = max(median(abs(value - middle) for value in bits), LEAST_MAD)
    for tensor, value in zip(group, bits, strict=True):
        score = NORMAL * (value - middle) / spread
        if score >= THRESHOLD:
            yield RULE.finding(
                f"absmax {tensor.stats.absmax:.6g} is {2 ** (value - middle):.3g} times the median of the "
                f"{len(group)} {tensor.role} tensors ({2**middle:.3g}): robust z-score {score:.1f}, reported from "
                f"{THRESHOLD:g}.",
                tensor.info,
                evidence={
                    "absmax": tensor.stats.absmax,
                    "median": 2**middle,
                    "mad_bits": spread,
                    "z": score,
                    "threshold": THRESHOLD,
                    "group": len(group),
                },
            )


RULE = Rule("GD108", "outlier-magnitude", "note", check)
