"""GD503 gguf-per-layer-embedding-type: Gemma 3n's per-layer embeddings in a type that few readers look rows up in.

## What it checks

The type of `per_layer_token_embd.weight`: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 pass; any other is reported.

## Why it matters

This table, more than two of E2B's four and a half billion parameters, is only ever read by rows. ggml's CUDA kernel for
that (`ggml_cuda_get_rows_switch_src0_type` in ggml/src/ggml-cuda/getrows.cu) knows these types; for K-quants and IQ
types the lookup is left to the processor, or the program stops. The published advice for Gemma 3n names the same
five quantised types: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

## Example

`per_layer_token_embd.weight` as Q4_K, because a quantiser gave every matrix the same type.

## How to mend

Quantise anew and say the type of this table: `llama-quantize --tensor-type per_layer_token_embd=q8_0 …`.

## Limits

It judges by that list and runs nothing: newer versions of a reader may know more types, and on the processor all work.
Published files keep the table in F16.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.architectures.gguf import PER_LAYER_EMBEDDING
from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule

__all__ = ["RULE"]

LOOKED_UP = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Types that ggml's CUDA kernel looks rows up in."""


def check(exam: Examination) -> Iterator[Finding]:
    """One finding if the table has another type."""
    table = exam.checkpoint.tensors.get(PER_LAYER_EMBEDDING)
    if exam.checkpoint.format != "gguf" or table is None or table.dtype in LOOKED_UP:
        return
    yield RULE.finding(
        f"Stored as {table.dtype}, in which ggml's CUDA kernel looks up no rows; it knows {', '.join(LOOKED_UP)}.",
        table,
        evidence={"dtype": table.dtype, "known": ", ".join(LOOKED_UP)},
    )


RULE = Rule("GD503", "gguf-per-layer-embedding-type", "warning", check)
