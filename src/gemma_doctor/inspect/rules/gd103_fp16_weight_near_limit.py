"""GD103 fp16-weight-near-limit: the largest weight is within a factor of two of float16's limit.

## What it checks

That the largest finite magnitude of every floating-point tensor is below 32752, half of the largest float16 (65504).

## Why it matters

The weight itself still fits, but doubling it does not: one optimizer step, a merge of adapters, or a product with an
activation larger than 2 leaves float16's range.

## Example

A scale of 40,000, in bfloat16, in a quantised model's dequantisation vector.

## How to mend

Run the model in bfloat16 or float32, or fold a power of two of these weights into a neighbour.

## Limits

The threshold is one binary step of margin, a convention and not a proof. A tensor that already has elements of 65520
and more is reported by GD102 only, and what GD102 leaves out is left out here. With `--target-dtype bfloat16`
the rule is silent.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule
from gemma_doctor.tensors import FP16_MAX

__all__ = ["RULE"]

THRESHOLD = FP16_MAX / 2
"""32752: one binary step below the largest float16."""


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each tensor near the limit and not beyond it."""
    for tensor in exam.float16_bound():
        absmax = tensor.stats.absmax
        if absmax is not None and absmax >= THRESHOLD and not tensor.stats.fp16_overflow:
            yield RULE.finding(
                f"absmax {absmax:.6g} is at or above {THRESHOLD:g}, half of the largest float16 ({FP16_MAX:g}): "
                "any doubling overflows.",
                tensor.info,
                evidence={"absmax": absmax, "threshold": THRESHOLD, "limit": FP16_MAX},
            )


RULE = Rule("GD103", "fp16-weight-near-limit", "warning", check)
