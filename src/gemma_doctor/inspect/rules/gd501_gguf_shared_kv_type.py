"""GD501 gguf-shared-kv-type: a GGUF file says how many layers share KV in another type than UINT32.

## What it checks

The type of the metadata key `gemma3n.attention.shared_kv_layers` (of any architecture that has it).

## Why it matters

Converters of mid-2025 wrote the number as FLOAT32; the gguf package writes UINT32 since version 0.18. A reader that
asks for an integer gets none: one popular reader took the number for 0 then, in silence, and treated every layer as one
with keys and values of its own. The weights are sound, the answers are not.

## Example

Gemma 3n E2B: 10 of 30 layers share, stored as the FLOAT32 10.0.

## How to mend

The pass `gguf-uint32` writes the same number as UINT32. Both types take four bytes, so nothing in the file moves: into
a copy (`--output`), or into the file itself (`--in-place`), after a backup of its header.

## Limits

A number of another width (UINT64, say), or one that is not whole, is reported and not mended: have the file converted
anew. The rule reads the first file of a split one, which holds the metadata.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gemma_doctor.architectures.gguf import shared_kv_key
from gemma_doctor.checkpoint.gguf_values import as_uint32
from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding, Repair
from gemma_doctor.rule import Rule

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding if the number of layers that share KV has another type."""
    key = shared_kv_key(exam.checkpoint.metadata)
    value = exam.checkpoint.metadata.get(key)
    if value is None or value.type == "UINT32":
        return
    number = value.content if isinstance(value.content, int | float) and math.isfinite(value.content) else None
    shown = "" if number is None else f" ({number:g})"
    yield RULE.finding(
        f"{key} is stored as {value.type}{shown}, not as UINT32; a reader that asks for an integer may find none, and "
        "share no KV at all.",
        exam.checkpoint.files[0],
        evidence={"key": key, "type": value.type, "expected": "UINT32", "value": number},
        repair=None if as_uint32(value) is None else Repair("gguf-uint32", "exact"),
    )


RULE = Rule("GD501", "gguf-shared-kv-type", "warning", check)
