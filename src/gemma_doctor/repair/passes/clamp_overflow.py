"""clamp-overflow: weights beyond float16's range are cut to its edge.

## What it does

Every element above the largest float16, 65504, is replaced by the largest number of the tensor's own dtype that is not
above it, sign kept. In bfloat16 that is 65280: it has no number between that and 65536.

## Which findings it mends

GD102 fp16-weight-overflow.

## Exactness

Lossy: it is another function, and so it needs `--unsafe`.

## Example

A running variance of 497,160 becomes 65504. In float16 it was inf, and dividing by its root gave 0; now the channel is
2.75 times too loud.

## Limits

Scaling is nearly always the better answer: a weight that is read by a norm, or followed by a gain, can hand its scale
to that neighbour. Elements from 65504 to 65520 are cut as well, which float16 would only have rounded. Infinities in
the same tensor are cut too, unless `zero-nonfinite`, which comes before, has made them 0; NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gemma_doctor.architectures.dtypes import FULL_FLOATS
from gemma_doctor.plans import Clamp, Reason
from gemma_doctor.repair.evidence.case import Answer, Case, Mend, Pass, left
from gemma_doctor.tensors import FP16_MAX

__all__ = ["PASS"]

_LIMITS: Mapping[str, float] = {"BF16": 65280.0}
"""Largest number of a dtype that is not above 65504, where that is not 65504 itself: bfloat16's 0x477f."""


def plan(case: Case) -> Iterator[Answer]:
    """An edit for each tensor with elements beyond float16's range."""
    for finding in case.findings:
        tensor = case.exam.tensors.get(finding.tensor or "")
        if tensor is None or tensor.info.dtype not in FULL_FLOATS:
            yield left(finding, f"only tensors in {', '.join(sorted(FULL_FLOATS))} can be clamped")
            continue
        limit, stats = _LIMITS.get(tensor.info.dtype, FP16_MAX), tensor.stats
        edit = Clamp(
            tensor=tensor.info.name,
            limit=limit,
            pass_name=PASS.name,
            exactness="lossy",
            reason=Reason(
                finding.rule,
                f"{stats.fp16_overflow:,} of {stats.count:,} elements are cut to {limit:g}, the largest {_kind(limit)}"
                f"; the largest of them is {stats.absmax:.6g}.",
                {"fp16_overflow": stats.fp16_overflow, "count": stats.count, "absmax": stats.absmax, "limit": limit},
            ),
        )
        yield Mend(finding, (edit,))


def _kind(limit: float) -> str:
    return "float16" if limit == FP16_MAX else f"bfloat16 that float16 holds (its own limit is {FP16_MAX:g})"


PASS = Pass("clamp-overflow", "lossy", ("GD102",), plan)
