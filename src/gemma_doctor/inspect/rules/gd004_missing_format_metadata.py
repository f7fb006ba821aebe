"""GD004 missing-format-metadata: a file does not say which framework wrote it.

## What it checks

That `__metadata__` in every safetensors header has the key `format` (`"pt"`, `"tf"`, `"flax"` or `"mlx"`).

## Why it matters

Several transformers 4 releases read `metadata.get("format")` without a test, and end in
`AttributeError: 'NoneType' object has no attribute 'get'` or in *does not contain the valid metadata*
(safetensors/safetensors#549, ml-explore/mlx#743). The numbers are not touched by it, hence a note.

## Example

`safetensors.numpy.save_file(tensors, path)` without `metadata={"format": "pt"}`.

## How to mend

Save the file again with `metadata={"format": "pt"}`.

## Limits

GGUF files have no such key and are not judged. The value is not judged either.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each readable safetensors file whose metadata lacks ``format``."""
    if exam.checkpoint.format != "safetensors":
        return
    broken = {fault.file for fault in exam.checkpoint.faults if fault.kind == "unreadable-shard"}
    for file in exam.checkpoint.files:
        if file.name in broken or "format" in (file.metadata or {}):
            continue
        keys = len(file.metadata or {})
        yield RULE.finding(
            f"The header has no 'format' in its __metadata__ ({keys} keys); some transformers 4 releases refuse that.",
            file,
            evidence={"metadata_keys": keys},
        )


RULE = Rule("GD004", "missing-format-metadata", "note", check)
