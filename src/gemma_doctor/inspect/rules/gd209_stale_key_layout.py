"""GD209 stale-key-layout: the tensors have names that some supported loader does not find.

## What it checks

Which of the family's key layouts the names follow (Gemma 3 has several: the Hub's `language_model.model.*`, the
`model.language_model.*` of newer state dicts, and others), and whether a supported loader fails to find that one.

## Why it matters

A loader that does not find a name initialises the tensor at random and says so in one long warning, or skips a whole
tower. The model runs, and answers badly.

## Example

A Gemma 3 that transformers 5 saved from a fresh config writes `vision_tower.embeddings...`; transformers 4.53 looks for
`vision_tower.vision_model.embeddings...` and starts with a random vision tower.

## How to mend

The pass `rename-keys` writes the tensors under the names that the Hub's checkpoints use. No byte of data changes.

## Limits

Silent for families that are not known. Which loader finds which names was tried with transformers 4.53 and 5.23 and
read in llama.cpp's converter.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding, Repair
from gemma_doctor.rule import Rule

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """At most one finding, for the whole checkpoint."""
    layout = exam.layout
    if layout is None or layout.stale is None:
        return
    renamed = sum(exam.canonical(info.name) != info.name for info in exam.headers())
    if renamed:
        total = sum(1 for _ in exam.headers())
        yield RULE.finding(
            f"{renamed:,} of {total:,} tensor names follow the layout '{layout.name}'. Not found by {layout.stale}.",
            evidence={"layout": layout.name, "renamed": renamed, "tensors": total},
            repair=Repair("rename-keys", "exact"),
        )


RULE = Rule("GD209", "stale-key-layout", "warning", check)
