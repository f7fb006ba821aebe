"""GD102 fp16-weight-overflow: finite weights become infinite in float16.

## What it checks

How many finite elements have a magnitude of at least 65520. The largest float16 is 65504, and IEEE 754 rounds to
nearest, ties to even: everything below 65520, half way to the next power of two, still rounds down to 65504.

## Why it matters

Loading the checkpoint with `dtype=float16` turns these elements into inf, silently.

## Example

A running variance of 497,160 in a trained pitch tracker: in float16 it is inf, dividing by it gives 0, and every
activation stays finite while the answers change.

## How to mend

Run the model in bfloat16 or float32, or fold the scale of these weights into a neighbour. The pass `clamp-overflow`
cuts them to 65504, which is another function: it needs `--unsafe`.

## Limits

In bfloat16 the question is coarser than it looks: it has no value between 65280 and 65536. Integers are not cast to
float16 and are not judged, and neither is what stays as it is stored where the rest is cast: float8 weights, a
quantiser's scales in float32, and what transformers keeps in float32 (T5's `wo`). With `--target-dtype bfloat16` the
rule is silent.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding, Repair
from gemma_doctor.rule import Rule
from gemma_doctor.tensors import FP16_FIRST_INF, FP16_MAX

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each tensor with finite elements that round to inf."""
    for tensor in exam.float16_bound():
        info, stats = tensor.info, tensor.stats
        if not stats.fp16_overflow:
            continue
        grid = "; bfloat16 has no value between 65280 and 65536" if info.dtype == "BF16" else ""
        yield RULE.finding(
            f"{stats.fp16_overflow:,} of {stats.count:,} elements are finite and become inf in float16: absmax "
            f"{stats.absmax:.6g}, and inf begins at {FP16_FIRST_INF:g} (the largest float16 is {FP16_MAX:g}{grid}).",
            info,
            evidence={
                "fp16_overflow": stats.fp16_overflow,
                "count": stats.count,
                "absmax": stats.absmax,
                "first_inf": FP16_FIRST_INF,
            },
            repair=Repair("clamp-overflow", "lossy"),
        )


RULE = Rule("GD102", "fp16-weight-overflow", "error", check)
