"""GD106 all-zero-tensor: every element of a tensor is zero.

## What it checks

Floating-point tensors without a single non-zero element. For a bias that is a note, for anything else a warning.

## Why it matters

A zero matrix passes nothing on and a zero gain silences a whole layer. Usually a tensor was allocated and never
filled: a merge that lost a key, a shard that was written too early, a training run that never reached the layer.

## Example

`pooler.dense.bias` of all-MiniLM-L6-v2: 384 zeros, trained that way and harmless. `conv_stem.conv.bias` of Gemma 3n's
vision encoder: timm 1.0.17 added it, filled with zeros.

## How to mend

Compare with the checkpoint it was made from. A zero bias may stay.

## Limits

Initialisers write zeros on purpose: the second factor of a LoRA adapter, the last norm of a residual branch. Before
any training that is right; after training it is not. Integer and boolean tensors are not judged, nor are empty
tensors, nor gains that their module adds one to (Gemma 3's norms), for which zero is neutral. The k/v tensors of
layers that share KV are reported by GD201.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each tensor of zeros for which the architecture gives no reason."""
    for tensor in exam.floats():
        stats = tensor.stats
        name = exam.canonical(tensor.info.name)
        known = exam.model.expected.get(name)
        neutral = known is not None and known.plus_one
        if not stats.count or stats.zeros < stats.count or neutral or name in exam.model.shared_kv:
            continue
        bias = tensor.role == "bias"
        verdict = "common and harmless in a bias" if bias else f"no trained {tensor.role} tensor looks like that"
        yield RULE.finding(
            f"Every element is 0; {verdict}.",
            tensor.info,
            evidence={"zeros": stats.zeros, "count": stats.count, "role": tensor.role},
            severity="note" if bias else "warning",
        )


RULE = Rule("GD106", "all-zero-tensor", "warning", check)
