"""GD101 nonfinite-weight: a weight is NaN or infinite.

## What it checks

The exact number of NaNs and infinities in every floating-point tensor: float64, float32, float16, bfloat16 and
the float8 formats (`F8_E4M3` has NaNs and no infinity).

## Why it matters

One NaN in a weight makes every output that it touches NaN. An infinity becomes NaN as soon as it meets a zero, an
infinity of the other sign, or a norm. No loader looks.

## Example

A fine-tune whose loss became NaN at step 812 and that saved a checkpoint at step 1000.

## How to mend

Go back to the last checkpoint without this finding. If there is none, the pass `zero-nonfinite` sets these elements
to zero, which is another function: it needs `--unsafe`, and the result must be evaluated.

## Limits

Quantised integers are not decoded. The bounds of a clamp (Gemma 4's `input_min` and the like) may be infinite, for
that means that nothing is clamped; a NaN is reported there too. A NaN that only arises at run time is not a matter of
the weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding, Repair
from gemma_doctor.rule import Rule

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each tensor with a NaN or an infinity."""
    for tensor in exam.floats():
        info, stats = tensor.info, tensor.stats
        known = exam.model.expected.get(exam.canonical(info.name))
        if stats.nan or (stats.inf and not (known and known.bound)):
            yield RULE.finding(
                f"{stats.nan:,} NaN and {stats.inf:,} infinite among {stats.count:,} {info.dtype} elements; "
                "a weight must be finite.",
                info,
                evidence={"nan": stats.nan, "inf": stats.inf, "count": stats.count, "allowed": 0},
                repair=Repair("zero-nonfinite", "lossy"),
            )


RULE = Rule("GD101", "nonfinite-weight", "error", check)
