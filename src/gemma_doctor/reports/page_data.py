"""What the page's script draws and lists: columns of numbers and names, as JSON inside of HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_doctor.choices import SEVERITIES
from gemma_doctor.records import Finding, Report
from gemma_doctor.reports.comparison import Comparison
from gemma_doctor.reports.figures import strict
from gemma_doctor.reports.layers import ROLES, Stack
from gemma_doctor.reports.names import elide, safe_text
from gemma_doctor.reports.order import towers
from gemma_doctor.tensors import FP16_MAX, MeasuredTensor
from gemma_doctor.verifications import Activation, Run

__all__ = ["payload"]

_SAFE_INTEGER = 2**53  # beyond it, JavaScript rounds
_MARKUP = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def payload(
    report: Report, ordered: Sequence[MeasuredTensor], found: Sequence[Stack], comparison: Comparison | None
) -> str:
    """The data as JSON that holds no character that HTML reads; names are made visible.

    Args:
        report: The report.
        ordered: Its tensors in model order.
        found: Their layers.
        comparison: What lies between an earlier report and this one.
    """
    data = {
        "limits": {"fp16": FP16_MAX, "half": FP16_MAX / 2, "square": 256},
        "roles": ROLES,
        "severities": SEVERITIES,
        "towers": [[start, _name(name)] for start, _, name in towers(ordered)],
        "tensors": _tensors(ordered),
        "findings": _findings(report.findings, ordered),
        "cells": [list(cell.tensors) for stack in found for _, row in stack.rows for cell in row if cell.tensors],
        "before": _before(comparison, ordered),
        "runs": _runs(report),
    }
    return json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_MARKUP)


def _tensors(ordered: Sequence[MeasuredTensor]) -> dict[str, list[Any]]:
    """A list for each column of the table, in model order."""
    rows = [(tensor, tensor.info, tensor.stats) for tensor in ordered]
    return {
        "name": [_name(info.name) for _, info, _ in rows],
        "role": [ROLES.index(tensor.role) for tensor, _, _ in rows],
        "dtype": [_name(info.dtype) for _, info, _ in rows],
        "shape": [list(info.shape) for _, info, _ in rows],
        "file": [_name(info.file) for _, info, _ in rows],
        "bytes": [info.nbytes for _, info, _ in rows],
        "count": [stats.count for _, _, stats in rows],
        "absmax": [_number(stats.absmax) for _, _, stats in rows],
        "min": [_number(stats.minimum) for _, _, stats in rows],
        "max": [_number(stats.maximum) for _, _, stats in rows],
        "rms": [_number(stats.rms) for _, _, stats in rows],
        "nan": [stats.nan for _, _, stats in rows],
        "inf": [stats.inf for _, _, stats in rows],
        "zeros": [stats.zeros for _, _, stats in rows],
        "overflow": [stats.fp16_overflow for _, _, stats in rows],
        "subnormal": [stats.fp16_subnormal for _, _, stats in rows],
        "underflow": [stats.fp16_underflow for _, _, stats in rows],
        "l1": [_number(stats.row_l1_max) for _, _, stats in rows],
        "l2": [_number(stats.row_l2_max) for _, _, stats in rows],
        "limit": [_number(tensor.limit) for tensor, _, _ in rows],
        "budget": [_number(tensor.input_budget) for tensor, _, _ in rows],
    }


def _findings(findings: Sequence[Finding], ordered: Sequence[MeasuredTensor]) -> list[tuple[int, str, int]]:
    """(position of the tensor, rule, severity) of each finding about a measured tensor."""
    positions = {tensor.info.name: position for position, tensor in enumerate(ordered)}
    known = ((positions.get(found.tensor or ""), found) for found in findings)
    return [
        (position, _name(found.rule), SEVERITIES.index(found.severity))
        for position, found in known
        if position is not None
    ]


def _before(comparison: Comparison | None, ordered: Sequence[MeasuredTensor]) -> list[tuple[int, Any]]:
    """(position, largest magnitude before) of each tensor that changed."""
    if comparison is None:
        return []
    changed = {pair.after.info.name: pair.before.stats.absmax for pair in comparison.changed}
    places = ((position, tensor.info.name) for position, tensor in enumerate(ordered))
    return [(position, _number(changed[name])) for position, name in places if name in changed]


def _runs(report: Report) -> list[dict[str, Any]]:
    """For each run of a verification, its operations in the order of execution."""
    runs = report.verification.runs if report.verification else ()
    held: Mapping[str, list[Activation]] = {run.modality: [] for run in runs}
    for activation in sorted(report.activations, key=lambda one: one.step):
        if activation.run in held:
            held[activation.run].append(activation)
    return [_operations(run, held[run.modality]) for run in runs]


def _operations(run: Run, found: Sequence[Activation]) -> dict[str, Any]:
    """The columns of one run; ``fault`` is the position of what failed first, None where that is not among them."""
    modules = {name: place for place, name in enumerate(dict.fromkeys(one.module for one in found))}
    failed = run.first_failure.activation if run.first_failure else None
    return {
        "fault": next((place for place, one in enumerate(found) if failed and _same(one, failed)), None),
        "modules": [_name(name) for name in modules],
        "module": [modules[one.module] for one in found],
        "op": [_name(one.op) for one in found],
        "phase": [one.phase for one in found],
        "dtype": [_name(one.dtype) for one in found],
        "step": [one.step for one in found],
        "absmax": [_number(one.peak) for one in found],
        "nonfinite": [one.nonfinite for one in found],
        "calls": [one.calls for one in found],
    }


def _same(one: Activation, other: Activation) -> bool:
    """Whether both are what one operation put out at one place."""
    return (one.phase, one.module, one.op) == (other.phase, other.module, other.op)


def _name(name: str) -> str:
    """A name that shows whatever it holds, at most so long that a page can bear it."""
    return elide(safe_text(name))


def _number(value: object) -> Any:  # noqa: ANN401  # JSON values
    """A number that JavaScript reads back exactly: integers that it would round become strings."""
    return str(value) if isinstance(value, int) and abs(value) > _SAFE_INTEGER else strict(value)
