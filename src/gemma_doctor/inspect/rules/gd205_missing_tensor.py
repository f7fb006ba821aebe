"""GD205 missing-tensor: the architecture needs a tensor that the checkpoint lacks.

## What it checks

Every tensor that `config.json` implies for a known family, in whatever key layout the checkpoint uses, against the
headers. The k/v tensors of layers that share KV are needed for `--loader transformers-pre-5.6`, `vllm` and `llama.cpp`
and for no other (see GD201).

## Why it matters

transformers initialises a missing tensor at random, with a warning among many. The model runs, and answers badly.

## Example

A merge script that copied the language model and forgot `model.embed_vision.embedding_projection.weight`.

## How to mend

Take the tensor from the checkpoint that this one was made from. If a whole tower is missing, load the checkpoint with
the class that has no such tower, and correct `architectures` in the config.

## Limits

Silent for families that are not known, without `config.json`, and where `--include` or `--exclude` selected a part.
A tied `lm_head` and optional tensors may be absent; a missing stem bias is GD210's. A tensor that the index promises
and no readable file holds is reported by GD001 or GD002 only.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.architectures.base import Need
from gemma_doctor.architectures.loaders import SHARED_KV_USE
from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each needed tensor that is absent."""
    use = SHARED_KV_USE[exam.loader]
    needs: tuple[Need, ...] = ("required", "shared-kv") if use.needs else ("required",)
    for name, expected in exam.lacking(*needs):
        absent = use.absent if expected.need == "shared-kv" else "transformers initialises it at random"
        yield RULE.finding(
            f"Absent, and {exam.model.family} needs it: {absent}.",
            exam.disk_name(name),
            evidence={
                "shape": str(list(expected.shape)),
                "module": expected.module,
                "need": expected.need,
                "loader": exam.loader,
            },
        )


RULE = Rule("GD205", "missing-tensor", "error", check)
