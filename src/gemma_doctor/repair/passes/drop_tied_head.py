"""drop-tied-head: a stored lm_head that equals the embedding it is tied to is left out.

## What it does

`lm_head.weight` is not written. A loader that reads `tie_word_embeddings` uses the embedding instead.

## Which findings it mends

GD208 stored-tied-head, where both hold the same bytes.

## Exactness

Exact: the same bytes are read from the embedding.

## Example

A fine-tune saved with its head: 1 GiB of a Gemma 3n's file is the embedding a second time.

## Limits

A head that differs from the embedding is not dropped, for it is not known which of the two was trained; nor is one that
could not be compared, because it is stored in another dtype or was left out of the scan.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.plans import Drop, Reason
from gemma_doctor.repair.evidence.case import Answer, Case, Mend, Pass, left

__all__ = ["PASS"]


def plan(case: Case) -> Iterator[Answer]:
    """An edit for the head, if it is the embedding byte for byte."""
    for finding in case.findings:
        name, tied = finding.tensor or "", case.exam.model.tied_head
        tensor = case.exam.checkpoint.tensors.get(name)
        if tensor is None or tied is None or case.exam.tied_head_equal is None:
            yield left(finding, "it was not compared with the embedding byte for byte, so dropping it may lose it")
        elif not case.exam.tied_head_equal:
            yield left(
                finding,
                "it differs from the embedding. Find out which of them was trained; then remove the head, or set "
                '"tie_word_embeddings": false in config.json',
            )
        else:
            embedding = case.exam.disk_name(tied[1])
            message = f"The same {tensor.nbytes:,} bytes as {embedding}, to which the config ties it."
            reason = Reason(finding.rule, message, {"bytes": tensor.nbytes, "embedding": embedding})
            yield Mend(finding, (Drop(tensor=name, pass_name=PASS.name, exactness="exact", reason=reason),))


PASS = Pass("drop-tied-head", "exact", ("GD208",), plan)
