"""GD001 unreadable-shard: a tensor file breaks its format.

## What it checks

Every tensor file is parsed as strictly as the official safetensors parser does it: header length, JSON, dtypes,
shapes, and data offsets that neither overlap, nor leave holes, nor pass the end of the file. A file that is something
else altogether (a Git LFS pointer, a pickle or a zip with the wrong suffix) is named as such.

## Why it matters

None of the tensors in such a file can be measured, and most loaders refuse the whole checkpoint. A header that some
parser accepts in spite of overlapping offsets lets two tensors share bytes.

## Example

A download that was cut short: the header promises 4,967,215,360 bytes and the file holds 1,073,741,824.

## How to mend

Fetch the file again (`git lfs pull` for a pointer), or save the checkpoint again with `save_pretrained`. A scan with
this finding is incomplete, so it exits with 2.

## Limits

The header of a safetensors file may take 100 MB, as in the official parser (safetensors 0.8, `MAX_HEADER_SIZE`).
Bytes inside a tensor carry no checksum in this format: a flipped bit is seen only if it makes a value abnormal.
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


RULE = Rule("GD001", "unreadable-shard", "error", check)
