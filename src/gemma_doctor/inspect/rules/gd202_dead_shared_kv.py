"""GD202 dead-shared-kv: k/v tensors in layers that share KV, and not zero.

## What it checks

The same tensors as GD201 (`k_proj`, `v_proj` and `k_norm` of the layers that share KV) where they are stored and hold
something other than zeros.

## Why it matters

A loader that shares never uses them: they are dead bytes (2 MiB for each bfloat16 matrix of an E2B), and whoever edits
or quantises them changes nothing. transformers before 5.6 does use them wherever there is no KV cache, so there the
model that trains is not the model that generates.

## Example

A checkpoint that was fine-tuned with transformers 4.56: the zeros became non-zero, and are still dead when a cache
is used.

## How to mend

Use transformers 5.6 or later. There the pass `prune-shared-kv` removes them without changing the function; it is
refused for loaders that want these tensors (see GD201). Copying the donor's weights is wrong (see GD201).

## Limits

What a non-zero tensor holds, trained weights or uninitialised memory, cannot be told from its numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.architectures.loaders import SHARED_KV_USE
from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding, Repair
from gemma_doctor.rule import Rule

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each k/v tensor of a layer that shares KV, if it is not all zero."""
    use = SHARED_KV_USE[exam.loader]
    for name, shared in exam.model.shared_kv.items():
        tensor = exam.measured(name)
        if tensor is None or tensor.stats.zeros == tensor.stats.count:
            continue
        yield RULE.finding(
            f"Not zero, yet layer {shared.layer} reuses the keys and values of layer {shared.donor}: {use.stored}.",
            tensor.info,
            evidence={
                "nonzero": tensor.stats.count - tensor.stats.zeros,
                "count": tensor.stats.count,
                "layer": shared.layer,
                "donor": shared.donor,
                "loader": exam.loader,
            },
            repair=None if use.needs else Repair("prune-shared-kv", "exact"),
        )


RULE = Rule("GD202", "dead-shared-kv", "note", check)
