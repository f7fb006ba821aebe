"""zero-nonfinite: NaN and infinities become zeros.

## What it does

Every NaN and every infinity of a tensor is replaced by 0. All other elements keep their bits.

## Which findings it mends

GD101 nonfinite-weight.

## Exactness

Lossy: it is another function, and so it needs `--unsafe`. What the elements were before they broke is not known to
anybody; 0 is the value that adds nothing to a sum.

## Example

A merge overflowed in float16 and left 3 infinities in a `down_proj` of 33 million elements. With zeros in their place
the layer is finite, and its rows are short of one weight each.

## Limits

A checkpoint with NaN in it was written by something that had failed already, and the finite numbers beside the NaN may
be wrong as well. Look for an earlier checkpoint first. A gain of 0 silences its channel.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.plans import Reason, ZeroNonfinite
from gemma_doctor.repair.elements.floats import FORMS
from gemma_doctor.repair.evidence.case import Answer, Case, Mend, Pass, left

__all__ = ["PASS"]


def plan(case: Case) -> Iterator[Answer]:
    """An edit for each tensor with NaN or infinities."""
    for finding in case.findings:
        tensor = case.exam.tensors.get(finding.tensor or "")
        if tensor is None or tensor.info.dtype not in FORMS:
            yield left(finding, "its elements cannot be edited: only F64, F32, F16, BF16, F8_E4M3 and F8_E5M2 can")
            continue
        stats = tensor.stats
        edit = ZeroNonfinite(
            tensor=tensor.info.name,
            pass_name=PASS.name,
            exactness="lossy",
            reason=Reason(
                finding.rule,
                f"{stats.nan:,} NaN and {stats.inf:,} infinities of {stats.count:,} elements become 0.",
                {"nan": stats.nan, "inf": stats.inf, "count": stats.count},
            ),
        )
        yield Mend(finding, (edit,))


PASS = Pass("zero-nonfinite", "lossy", ("GD101",), plan)
