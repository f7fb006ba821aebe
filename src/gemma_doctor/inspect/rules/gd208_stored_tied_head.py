"""GD208 stored-tied-head: lm_head is stored although the config ties it to the embedding.

## What it checks

Where `tie_word_embeddings` holds, `lm_head.weight` is the input embedding and need not be stored. If it is, the rule
compares the two: the same bytes are a note, different values an error.

## Why it matters

Loaders disagree on a head that is stored *and* tied: some let the tie win, some the stored tensor. With the same
bytes that costs disk space only. With different values, some of them do not run the model that was trained.

## Example

A fine-tune with `tie_word_embeddings` switched off for training and left on in the config that was saved.

## How to mend

Equal: the pass `drop-tied-head` removes it. Different: find out which of them was trained, then either remove the head
or set `"tie_word_embeddings": false`.

## Limits

Equality is decided over all bytes, where both tensors have the same dtype and shape. Otherwise the statistics may
still prove that they differ; if they prove nothing, the finding is a note that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding, Repair
from gemma_doctor.rule import Rule
from gemma_doctor.tensors import MeasuredTensor

__all__ = ["RULE"]

Verdict: TypeAlias = Literal["equal", "different", "unknown"]


def check(exam: Examination) -> Iterator[Finding]:
    """At most one finding: the stored head against the embedding."""
    if exam.model.tied_head is None:
        return
    head, embedding = map(exam.measured, exam.model.tied_head)
    if head is None:
        return
    verdict = _compare(exam, head, embedding)
    yield RULE.finding(
        f"Stored although the config ties it to {exam.disk_name(exam.model.tied_head[1])}: {_SAYS[verdict]}.",
        head.info,
        evidence={"comparison": verdict, "bytes": head.info.nbytes, "absmax": head.stats.absmax},
        repair=Repair("drop-tied-head", "exact") if verdict == "equal" else None,
        severity="error" if verdict == "different" else "note",
    )


_SAYS: dict[Verdict, str] = {
    "equal": "the same bytes, which is harmless",
    "different": "different values, so what a model computes depends on its loader",
    "unknown": "whether both hold the same values was not compared",
}


def _compare(exam: Examination, head: MeasuredTensor, embedding: MeasuredTensor | None) -> Verdict:
    """What the bytes say, where they were compared; else what the statistics prove."""
    if exam.tied_head_equal is not None:
        return "equal" if exam.tied_head_equal else "different"
    if embedding is None:
        return "unknown"
    return "different" if _differs(head, embedding) else "unknown"


def _differs(head: MeasuredTensor, embedding: MeasuredTensor) -> bool:
    """Whether shapes or statistics that do not depend on the dtype prove that the values differ."""
    a, b = head.stats, embedding.stats
    same = (a.nan, a.inf, a.zeros, a.minimum, a.maximum) == (b.nan, b.inf, b.zeros, b.minimum, b.maximum)
    return head.info.shape != embedding.info.shape or not same


RULE = Rule("GD208", "stored-tied-head", "error", check)
