"""GD201 zero-shared-kv: all-zero k/v tensors in layers that share KV.

## What it checks

The last `num_kv_shared_layers` layers of Gemma 3n and Gemma 4 do not project keys and values: each reuses the *states*
of a donor, the last earlier layer of its kind (sliding or full attention). The rule reports their `k_proj`, `v_proj`
and `k_norm` where they are stored and all zero.

## Why it matters

It depends on the loader:

| loader | what it does with them |
| --- | --- |
| transformers 5.6 and later | has no such modules, drops them on load, always shares |
| transformers 5.0 to 5.5 | shares with a cache; uses the zeros under `use_cache=False` and gradient checkpointing |
| transformers 4.53 to 4.57 | shares with a cache; training makes none, so it always uses the zeros |
| vLLM, llama.cpp | load them, and read the donor's cache instead |

Where the zeros are used, v = 0 makes the attention of these layers vanish. Training then starts at a loss of 6 to 7,
with large gradients in the zero `v_proj` (657 in a toy model) and none at all in `k_proj`.

## Example

Gemma 3n E2B: 30 layers, 10 of them share, layers 20 to 29; the donors are layers 18 and 19; 30 tensors.

## How to mend

Use a runtime that shares: transformers 5.6 or later, with non-reentrant gradient checkpointing. On disk, the pass
`prune-shared-kv` removes the tensors without changing the function, for that loader. It is refused for the others,
which want them: transformers before 5.6 would initialise them at random, llama.cpp requires them in every layer, and
vLLM does before pull request 54917.

**Copying the donor's weights is wrong**: a shared layer reuses the donor's keys and values, which were computed from
the donor's input; projecting its own input with the same weights gives something else.

## Limits

The rule reads the number of shared layers from `config.json` and is silent without it. Only a tensor without any
non-zero element counts as zero; others are GD202's business.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.architectures.loaders import SHARED_KV_USE
from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding, Repair
from gemma_doctor.rule import Rule

__all__ = ["RULE"]


FATES = (
    "transformers 5.6 and later drop such tensors on load; 4.53 to 5.5 use the zeros wherever the KV cache is off, as "
    "in training, and the layer's attention is lost; vLLM and llama.cpp load them and read the donor's cache instead."
)
"""What each loader does with them."""


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each all-zero k/v tensor of a layer that shares KV."""
    needed = SHARED_KV_USE[exam.loader].needs
    for name, shared in exam.model.shared_kv.items():
        tensor = exam.measured(name)
        if tensor is None or not tensor.stats.count or tensor.stats.zeros < tensor.stats.count:
            continue
        yield RULE.finding(
            f"Every element is 0, and layer {shared.layer} reuses the keys and values of layer {shared.donor}. "
            f"{FATES}{_advice(shared.donor) if needed else ''}",
            tensor.info,
            evidence={
                "zeros": tensor.stats.zeros,
                "count": tensor.stats.count,
                "layer": shared.layer,
                "donor": shared.donor,
                "loader": exam.loader,
            },
            repair=None if needed else Repair("prune-shared-kv", "exact"),
        )


def _advice(donor: int) -> str:
    return f" Do not copy layer {donor}'s weights into it: it reuses that layer's states and projects none itself."


RULE = Rule("GD201", "zero-shared-kv", "warning", check)
