"""GD206 unexpected-tensor: the architecture does not know a tensor.

## What it checks

Every tensor of the headers against the names that `config.json` implies for a known family.

## Why it matters

Loaders skip such a tensor, mostly without a word. It may be harmless baggage, or it may be a needed tensor under a
misspelt name; then GD205 reports the other half.

## Example

`base_model.model.model.language_model.layers.0.self_attn.q_proj.weight`: an adapter's wrapper was saved with the model.

## How to mend

Remove the tensor, or give it its right name.

## Limits

Silent for families that are not known and without `config.json`.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each tensor that the architecture does not know."""
    expected = exam.model.expected
    for info in exam.headers() if expected else ():
        if exam.canonical(info.name) not in expected:
            yield RULE.finding(
                f"{exam.model.family} has no such tensor: loaders skip it.",
                info,
                evidence={"bytes": info.nbytes, "dtype": info.dtype, "shape": str(list(info.shape))},
            )


RULE = Rule("GD206", "unexpected-tensor", "note", check)
