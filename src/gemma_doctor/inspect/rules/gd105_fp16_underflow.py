"""GD105 fp16-underflow: a share of the non-zero weights is flushed to zero in float16.

## What it checks

The share of the non-zero elements whose magnitude is at most 2^-25 (3.0e-8). The smallest float16 subnormal is 2^-24;
half of it and less rounds to zero (ties to even). The finding comes at 1% and above, and tells what further share
becomes subnormal, that is, keeps fewer than 11 significant bits.

## Why it matters

What the tensor stored in those places is gone. In a gain or a layer scale, a whole channel goes with it. This cannot be
seen from the largest magnitude.

## Example

Layer scales that were trained from 1e-8, or a checkpoint saved with a loss scale divided out twice.

## How to mend

Run the model in bfloat16 or float32, or multiply the tensor by a power of two and let its reader divide.

## Limits

The threshold of 1% is a convention: trained float32 weights hold a few elements that are as good as zero. MiniLM
(`all-MiniLM-L6-v2`) reaches 0.8% in one norm and 0.0003% in its matrices, and is healthy in float16. A large share of
tiny elements beside large ones, as weight decay or sparsity leaves it, is harmless: compare 2^-25 with the rms in the
evidence. With `--target-dtype bfloat16` the rule is silent.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule

__all__ = ["RULE"]

THRESHOLD = 0.01
"""Least share of the non-zero elements that is reported."""

LARGEST_FLUSHED = 2.0**-25
"""Half of the smallest float16 subnormal: a tie that goes to zero."""


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each tensor of which a share is flushed."""
    for tensor in exam.float16_bound():
        stats = tensor.stats
        nonzero = stats.finite - stats.zeros
        if not nonzero or stats.fp16_underflow < THRESHOLD * nonzero:
            continue
        flushed, subnormal = stats.fp16_underflow / nonzero, stats.fp16_subnormal / nonzero
        yield RULE.finding(
            f"{flushed:.3g} of the non-zero elements ({stats.fp16_underflow:,} of {nonzero:,}) are at most 2^-25 and "
            f"become 0 in float16, {subnormal:.3g} more become subnormal; reported from a share of {THRESHOLD:g}.",
            tensor.info,
            evidence={
                "share": flushed,
                "fp16_underflow": stats.fp16_underflow,
                "fp16_subnormal": stats.fp16_subnormal,
                "nonzero": nonzero,
                "threshold": THRESHOLD,
                "largest_flushed": LARGEST_FLUSHED,
                "rms": stats.rms,
            },
        )


RULE = Rule("GD105", "fp16-underflow", "warning", check)
