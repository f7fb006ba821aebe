"""GD210 missing-stem-bias: a Gemma 3n vision checkpoint older than timm 1.0.17.

## What it checks

That the bias of the vision encoder's first convolution, `conv_stem.conv.bias`, is stored.

## Why it matters

timm 1.0.17 added it, filled with zeros. A newer timm reports the key as missing, and a loader that initialises missing
tensors at random gives the encoder another first layer.

## Example

A Gemma 3n checkpoint that was converted with timm 1.0.16: 548 vision tensors are expected, 547 are stored.

## How to mend

The pass `add-stem-bias` adds a bias of zeros, which is the same function.

## Limits

Silent for families without such a bias, and where `--include` or `--exclude` selected a part.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding, Repair
from gemma_doctor.rule import Rule

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each absent stem bias."""
    for name, expected in exam.lacking("stem-bias"):
        shape = str(list(expected.shape))
        yield RULE.finding(
            f"Absent: the checkpoint is older than timm 1.0.17, which added this bias of zeros (shape {shape}), and "
            "a newer loader may initialise it at random.",
            exam.disk_name(name),
            evidence={"shape": shape, "module": expected.module},
            repair=Repair("add-stem-bias", "exact"),
        )


RULE = Rule("GD210", "missing-stem-bias", "warning", check)
