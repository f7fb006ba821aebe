"""GD003 unsafe-path: the index names a file outside the checkpoint.

## What it checks

Every file name in `model.safetensors.index.json`: it must be relative and stay inside the checkpoint's folder.
Absolute paths, `..` that leaves the folder, and drive letters are refused, and the file is not opened.

## Why it matters

An index is a stranger's text. A loader that joins its paths to the folder without a check reads, and on saving may
overwrite, any file that the user can reach.

## Example

`"lm_head.weight": "../../.ssh/id_ed25519"`.

## How to mend

Do not load this checkpoint. If you trust its origin, put the file into the folder and correct the index.

## Limits

Symbolic links inside the folder are followed, since the Hub's cache is made of them.
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


RULE = Rule("GD003", "unsafe-path", "error", check)
