"""GD204 mixed-dtype-module: tensors that work together are stored in different dtypes.

## What it checks

That the weight and the bias of one module have the same dtype, and so have the weights of sibling projections, which
loaders fuse into one matrix: query, key and value; gate and up.

## Why it matters

`torch.nn.functional.linear` and the convolutions refuse a weight and a bias of different dtypes, and a loader that
concatenates siblings either fails or silently casts all to the dtype of the first.

## Example

An adapter was merged in float32 into `q_proj` alone: `q_proj.weight` F32, `k_proj.weight` and `v_proj.weight` BF16.

## How to mend

The pass `cast-dtype` stores the tensor in the dtype of its siblings: exact towards more bits, rounded towards fewer,
and refused where it would make an inf or a zero.

## Limits

Siblings are known by their usual names (`q_proj`, `k_proj`, `v_proj`; `query`, `key`, `value`; `gate_proj`,
`up_proj`). A float8 weight beside a wider bias is how quantised models are stored, and is not judged. A gain in float32
beside matrices in bfloat16 is no mixture: it is a module of its own. GGUF files mix types by design and are not judged.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from gemma_doctor.architectures.dtypes import FULL_FLOATS, cast, is_float
from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule
from gemma_doctor.tensors import TensorInfo

__all__ = ["RULE"]

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"))
"""Projections that read the same input and are fused by some loaders."""

_FAMILY = {name: index for index, names in enumerate(SIBLINGS) for name in names}


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each tensor that deviates from the dtype of its module or siblings."""
    if exam.checkpoint.format != "safetensors":
        return
    infos = {info.name: info for info in exam.headers() if is_float(info.dtype)}
    for group in (*_modules(infos), *_siblings(infos)):
        dtypes = Counter(info.dtype for info in group)
        usual = dtypes.most_common(1)[0][0]
        model = next(info for info in group if info.dtype == usual)
        yield from (_finding(info, model) for info in group if info.dtype != usual)


def _modules(infos: Mapping[str, TensorInfo]) -> Iterator[Sequence[TensorInfo]]:
    """The weight and the bias of each module that has both."""
    for name, bias in infos.items():
        weight = infos.get(f"{name.removesuffix('bias')}weight") if name.endswith(".bias") else None
        if weight and {weight.dtype, bias.dtype} <= FULL_FLOATS:
            yield (weight, bias)


def _siblings(infos: Mapping[str, TensorInfo]) -> Iterator[Sequence[TensorInfo]]:
    """The weights of sibling projections, at least two at a time."""
    groups: dict[tuple[str, int], list[TensorInfo]] = defaultdict(list)
    for name, info in infos.items():
        parent, _, module = name.removesuffix(".weight").rpartition(".")
        if module in _FAMILY and name.endswith(".weight"):
            groups[parent, _FAMILY[module]].append(info)
    return (group for group in groups.values() if len(group) > 1)


def _finding(info: TensorInfo, model: TensorInfo) -> Finding:
    return RULE.finding(
        f"Stored as {info.dtype}, while {_relative(model.name, info.name)} beside it is {model.dtype}.",
        info,
        evidence={"dtype": info.dtype, "expected": model.dtype, "beside": model.name},
        repair=cast(info.dtype, model.dtype) if {info.dtype, model.dtype} <= FULL_FLOATS else None,
    )


def _relative(name: str, beside: str) -> str:
    """The name without the modules that both are in."""
    parts, others = name.split("."), beside.split(".")
    shared = next(index for index, (a, b) in enumerate(zip(parts, others, strict=False)) if a != b)
    return ".".join(parts[shared:])


RULE = Rule("GD204", "mixed-dtype-module", "warning", check)
