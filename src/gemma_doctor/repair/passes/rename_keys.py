"""rename-keys: the tensors get the names that the Hub's checkpoints use.

## What it does

Every tensor whose name follows another key layout of its family is renamed, by the prefixes of that layout. The index
is written to match.

## Which findings it mends

GD209 stale-key-layout.

## Exactness

Exact: no byte of a tensor's data changes.

## Example

`vision_tower.embeddings.patch_embedding.weight`, as transformers 5 writes it from a fresh Gemma 3 config, becomes
`vision_tower.vision_model.embeddings.patch_embedding.weight`.

## Limits

Refused as a whole where two tensors would get the same name, or one would get the name of a tensor that is there: then
two layouts are mixed, and which tensor counts is for a person to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from gemma_doctor.plans import Reason, Rename
from gemma_doctor.repair.evidence.case import Answer, Case, Mend, Pass, left

__all__ = ["PASS"]


def plan(case: Case) -> Iterator[Answer]:
    """An edit for each tensor whose name is not canonical."""
    exam = case.exam
    names = {name: exam.canonical(name) for name in exam.checkpoint.tensors}
    for finding in case.findings:
        renamed = {name: to for name, to in names.items() if name != to}
        clash = _clash(names)
        if exam.layout is None or not renamed:
            yield left(finding, "no name of the checkpoint belongs to a layout that is known")
        elif clash:
            yield left(
                finding,
                f"more than one tensor would be called {clash}: two layouts are mixed. Delete the "
                "tensors that are stale, then repair again",
            )
        else:
            message = f"The layout '{exam.layout.name}' is not found by {exam.layout.stale}."
            reason = Reason(finding.rule, message, {"layout": exam.layout.name})
            yield Mend(
                finding,
                tuple(
                    Rename(tensor=name, to=to, pass_name=PASS.name, exactness="exact", reason=reason)
                    for name, to in renamed.items()
                ),
            )


def _clash(names: Mapping[str, str]) -> str | None:
    """A name that two tensors would have, or that one has now and another would get."""
    targets = Counter(names.values())
    return next((to for name, to in names.items() if targets[to] > 1 or (name != to and to in names)), None)


PASS = Pass("rename-keys", "exact", ("GD209",), plan)
