"""GD002 index-mismatch: the index and the shards disagree.

## What it checks

`model.safetensors.index.json` against the headers of the shards: every file it names exists, every tensor of its
`weight_map` lies in that file, no tensor lies in two files or in a file that the index does not give it,
and `metadata.total_size`, where it is stated, is the number of bytes of all tensors.

## Why it matters

A loader follows the index. A tensor that it cannot find is initialised at random, with a warning that is easily
missed; of a tensor stored twice, which copy wins depends on the order in which the shards are read.

## Example

`total_size` says 10,878,876,544 and the shards hold 10,846,370,816 bytes: somebody pruned tensors and left the index.

## How to mend

Write the index anew from the shards (`save_pretrained` does), or fetch the missing shard. A scan that lacks a
tensor which the index promises is incomplete, so it exits with 2.

## Limits

`metadata.total_parameters` is not judged: converters count a tied head once or twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each fault of this kind that was met while the checkpoint was opened."""
    return RULE.from_faults(exam.checkpoint.faults)


RULE = Rule("GD002", "index-mismatch", "error", check)
