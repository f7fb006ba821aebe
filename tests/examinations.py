"""Examinations built in memory: what a rule sees of a checkpoint, with figures from the oracle and not the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import oracle
from checkpoints import Raw, Tensors, as_raw

from gemma_doctor.architectures import detect_layout, identify, output_limit
from gemma_doctor.catalog import find_rule
from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.examination import Examination
from gemma_doctor.records import FileInfo, Finding
from gemma_doctor.tensors import MeasuredTensor, TensorInfo, TensorStats

FILE = "model.safetensors"


def examine(tensors: Tensors, config: Mapping[str, Any] | None = None) -> Examination:
    """What rules see of this checkpoint, wholly selected and measured, for today's transformers and float16.

    Vary it with ``dataclasses.replace``.
    """
    raws = {name: as_raw(tensor) for name, tensor in tensors.items()}
    infos = {name: _info(name, raw) for name, raw in raws.items()}
    model = identify(config)
    layout = detect_layout(model, raws)
    measured = {}
    for name, raw in raws.items():
        canonical = model.canonical(name, layout)
        known = model.expected.get(canonical)
        role = known.role if known else model.role(infos[name])
        measured[name] = MeasuredTensor(infos[name], _measure(raw), role, output_limit(model, canonical, role))
    return Examination(
        checkpoint=_checkpoint(infos, config),
        tensors=measured,
        model=model,
        layout=layout,
        on_disk={model.canonical(name, layout): name for name in raws},
        selected=True,
        target_dtype="float16",
        loader="transformers",
    )


def find(rule_id: str, exam: Examination) -> list[Finding]:
    """What one rule says."""
    return list(find_rule(rule_id).check(exam))


def _info(name: str, raw: Raw) -> TensorInfo:
    return TensorInfo(name, raw.dtype, raw.shape, FILE, 0, len(raw.data))


@cache
def _measure(raw: Raw) -> TensorStats:
    """Kept, because the healthy tensors of one checkpoint serve many tests."""
    return oracle.as_stats(oracle.measure(raw.data, raw.dtype, raw.shape))


def _checkpoint(infos: Mapping[str, TensorInfo], config: Mapping[str, Any] | None) -> Checkpoint:
    size = sum(info.nbytes for info in infos.values())
    return Checkpoint(
        uri=".",
        root=Path(),
        format="safetensors",
        files=(FileInfo(FILE, size, {"format": "pt"}, len(infos)),),
        tensors=infos,
        config=config,
    )
