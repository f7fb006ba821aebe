"""GD207 shape-mismatch: a tensor's shape is not what the config implies.

## What it checks

The shape in the header against the one that `config.json` implies, for every tensor of a known family.

## Why it matters

Loading fails, or, with `ignore_mismatched_sizes=True`, the tensor is initialised at random.

## Example

An embedding with 262145 rows after a token was added, and a config that still says `vocab_size` 262144.

## How to mend

Correct the config if the weights are right; otherwise take the tensor from the checkpoint that this one was made from.

## Limits

Silent for families that are not known and without `config.json`. Shapes that tensor parallelism pads at load time are
not known.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each tensor of another shape."""
    for info in exam.headers():
        expected = exam.model.expected.get(exam.canonical(info.name))
        if expected is not None and info.shape != expected.shape:
            stored, implied = str(list(info.shape)), str(list(expected.shape))
            yield RULE.finding(
                f"Its shape is {stored}, and the config implies {implied} for this {expected.module}.",
                info,
                evidence={"shape": stored, "expected": implied, "module": expected.module},
            )


RULE = Rule("GD207", "shape-mismatch", "error", check)
