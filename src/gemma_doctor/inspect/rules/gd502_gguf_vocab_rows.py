"""GD502 gguf-vocab-rows: a GGUF file's two tables of embeddings have different numbers of rows.

## What it checks

That `token_embd.weight` and `per_layer_token_embd.weight` have as many rows as each other.

## Why it matters

Gemma 3n's `embed_tokens` has 262,400 rows and its per-layer table 262,144: rows 262,144 to 262,399, for tokens of
pictures and sounds, are copies of the pad token's row. llama.cpp's converter leaves them out, since the tokenizer has
no such tokens; other converters keep them. A reader that takes one number of rows for both tables refuses the file, or
reads beyond the end of the smaller one. Hence a note: both ways are known, and not every reader knows both.

## Example

Two published files of Gemma 3n E2B and E4B: 262,400 rows in `token_embd.weight`, 262,144 in the other.

## How to mend

If your reader refuses the file, have it converted anew by the converter that belongs to the reader.

## Limits

Nothing is said where one of the tables is absent. The tokenizer's tokens are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.architectures.gguf import EMBEDDING, PER_LAYER_EMBEDDING
from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding if both tables are there and differ in rows."""
    if exam.checkpoint.format != "gguf":
        return
    tables = [exam.checkpoint.tensors.get(name) for name in (EMBEDDING, PER_LAYER_EMBEDDING)]
    rows = [table.shape[0] for table in tables if table is not None and table.shape]
    if tables[0] is None or len(rows) < len(tables) or rows[0] == rows[1]:
        return
    yield RULE.finding(
        f"{rows[0]:,} rows, and {PER_LAYER_EMBEDDING} has {rows[1]:,}; a reader that takes one number for both fails.",
        tables[0],
        evidence={"rows": rows[0], "per_layer_rows": rows[1]},
    )


RULE = Rule("GD502", "gguf-vocab-rows", "note", check)
