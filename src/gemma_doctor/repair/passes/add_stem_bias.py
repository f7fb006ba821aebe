"""add-stem-bias: the vision encoder's first convolution gets the bias of zeros that newer timm expects.

## What it does

A tensor of zeros named `conv_stem.conv.bias` is added beside the convolution's weight, in the weight's dtype.

## Which findings it mends

GD210 missing-stem-bias.

## Exactness

Exact: adding zero changes no output, and a loader that would have initialised the missing bias at random no longer
does.

## Example

A Gemma 3n that was converted with timm 1.0.16: 547 vision tensors become 548.

## Limits

Where the weight itself is missing the bias stays missing too.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.architectures.dtypes import FULL_FLOATS
from gemma_doctor.plans import Add, Reason
from gemma_doctor.repair.evidence.case import Answer, Case, Mend, Pass, left

__all__ = ["PASS"]


def plan(case: Case) -> Iterator[Answer]:
    """An edit for each absent stem bias."""
    exam = case.exam
    for finding in case.findings:
        name = finding.tensor or ""
        expected = exam.model.expected.get(exam.canonical(name))
        weight = exam.checkpoint.tensors.get(f"{name.removesuffix('bias')}weight")
        if expected is None or weight is None or weight.dtype not in FULL_FLOATS:
            yield left(finding, "its convolution's weight is missing too, or not stored in a full float dtype")
            continue
        edit = Add(
            tensor=name,
            dtype=weight.dtype,
            shape=expected.shape,
            beside=weight.name,
            pass_name=PASS.name,
            exactness="exact",
            reason=Reason(
                finding.rule,
                f"timm 1.0.17 added this bias, {expected.shape[0]:,} zeros; without it a newer loader may initialise "
                "it at random.",
                {"shape": str(list(expected.shape)), "dtype": weight.dtype},
            ),
        )
        yield Mend(finding, (edit,))


PASS = Pass("add-stem-bias", "exact", ("GD210",), plan)
