"""GD107 dead-rows: some rows of an embedding or projection are all zero.

## What it checks

How many rows, along the first axis, hold nothing but zeros, in embeddings, linear layers and 1x1 convolutions. A token
with such a row has no embedding; an output channel with such a row always gives its bias.

## Why it matters

A few dead rows are capacity that is not used. Many of them are the mark of a vocabulary that was enlarged without
initialisation, or of a shard that was written before all of it was filled.

## Example

128 rows of zeros at the end of `embed_tokens.weight` after `resize_token_embeddings`.

## How to mend

Initialise the rows of an enlarged vocabulary (with the mean of the others, say). Otherwise nothing needs doing.

## Limits

The statistics count such rows and do not list them. One zero row of an embedding is taken for the padding row
(`padding_idx`), and where the architecture keeps copies of the pad row (Gemma 3n: rows 262144 to 262399), that many
more are expected. An all-zero tensor is GD106's business. Other convolutions are not judged: a fixed filter bank has
zero rows by right (the imaginary parts of the first and last bin of a Fourier transform).
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule
from gemma_doctor.tensors import MeasuredTensor

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each embedding or projection with more zero rows than it may have."""
    for tensor in exam.floats():
        shape, dead = tensor.info.shape, tensor.stats.zero_rows
        if not dead or dead == shape[0] or not _is_projection(tensor):
            continue
        expected = _expected(exam, tensor)
        if dead > expected:
            yield RULE.finding(
                f"{dead:,} of {shape[0]:,} rows are all zero; {expected:,} would be expected.",
                tensor.info,
                evidence={"zero_rows": dead, "rows": shape[0], "expected": expected},
            )


def _is_projection(tensor: MeasuredTensor) -> bool:
    """Whether it maps tokens or channels to channels, position by position."""
    pointwise = tensor.role == "conv" and all(extent == 1 for extent in tensor.info.shape[2:])
    return pointwise or tensor.role in {"embedding", "linear"}


def _expected(exam: Examination, tensor: MeasuredTensor) -> int:
    """Zero rows that it may have: an embedding's padding row, and the copies of it."""
    first, last = exam.model.pad_rows.get(exam.canonical(tensor.info.name), (0, 0))
    return last - first + (tensor.role == "embedding")


RULE = Rule("GD107", "dead-rows", "note", check)
