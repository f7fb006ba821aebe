"""prune-shared-kv: k/v tensors of layers that share KV are left out.

## What it does

The `k_proj`, `v_proj` and `k_norm` of the layers that reuse another layer's keys and values are not written.

## Which findings it mends

GD201 zero-shared-kv and GD202 dead-shared-kv.

## Exactness

Exact for a loader that shares, such as transformers 5.6 and later: it has no such modules and drops the tensors on
load. Refused for the others (`--loader`), which need them: transformers before 5.6 would initialise them at random,
llama.cpp requires them in every layer, and vLLM does before pull request 54917.

## Example

Gemma 3n E2B: 30 tensors of layers 20 to 29, 1556 tensors become 1526. Both layouts are valid.

## Limits

It never fills the tensors with the donor's weights, which some advice asks for: a shared layer reuses the donor's key
and value *states*, computed from the donor's input. Projecting its own input with the same weights gives something
else. Training needs a loader that shares in any case, with non-reentrant gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.architectures.loaders import SHARED_KV_USE
from gemma_doctor.plans import Drop, Reason
from gemma_doctor.repair.evidence.case import Answer, Case, Mend, Pass, left

__all__ = ["PASS"]


def plan(case: Case) -> Iterator[Answer]:
    """An edit for each k/v tensor of a sharing layer, if the loader can do without."""
    use = SHARED_KV_USE[case.exam.loader]
    for finding in case.findings:
        name = finding.tensor or ""
        shared = case.exam.model.shared_kv.get(case.exam.canonical(name))
        tensor = case.exam.checkpoint.tensors.get(name)
        if shared is None or tensor is None:
            yield left(finding, "the config does not say that its layer shares KV")
        elif use.needs:
            yield left(
                finding,
                f"the loader {case.exam.loader} needs it: {use.absent}. Run the model with transformers 5.6 or later, "
                "which shares. Filling it with the donor's weights would be wrong, for the layer reuses the donor's "
                "states and projects none itself.",
            )
        else:
            message = (
                f"Layer {shared.layer} reuses the keys and values of layer {shared.donor}, and {use.stored}: "
                "nobody reads it."
            )
            evidence = {"layer": shared.layer, "donor": shared.donor, "bytes": tensor.nbytes}
            reason = Reason(finding.rule, message, evidence)
            yield Mend(finding, (Drop(tensor=name, pass_name=PASS.name, exactness="exact", reason=reason),))


PASS = Pass("prune-shared-kv", "exact", ("GD201", "GD202"), plan)
