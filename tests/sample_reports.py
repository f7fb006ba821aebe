"""Reports built in memory, for renderers and settings: no file, no kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

from gemma_doctor.choices import Severity
from gemma_doctor.records import Coverage, FileInfo, Finding, Repair, Report, Source
from gemma_doctor.tensors import MeasuredTensor, Role, TensorInfo, TensorStats

FILE = "model.safetensors"
TOWER = "model.vision_tower.timm_model."


def tensor(
    name: str, absmax: float = 1.0, role: Role = "linear", dtype: str = "BF16", stats: TensorStats | None = None
) -> MeasuredTensor:
    """A tensor of 8 x 8 with this largest magnitude, or with these figures."""
    figures = stats or TensorStats(
        count=64,
        minimum=-absmax,
        maximum=absmax / 2,
        squares=Fraction(absmax) ** 2 * 3,
        row_l1_max=absmax * 4,
        row_squares_max=absmax * absmax * 2,
    )
    return MeasuredTensor(TensorInfo(name, dtype, (8, 8), FILE, 1000, 1128), figures, role, 65504.0)


def conv(name: str, absmax: float) -> MeasuredTensor:
    """A convolution of the vision tower whose norm squares in float16."""
    return replace(tensor(TOWER + name, absmax, "conv"), limit=256.0)


PUBLISHED = (
    conv("msfa.ffn.pw_proj.conv.weight", 98.0),
    conv("blocks.2.21.attn.key.down_conv.weight", 37.0),
    conv("blocks.2.32.pw_exp.conv.weight", 34.75),
    conv("blocks.2.30.pw_exp.conv.weight", 33.75),
    conv("blocks.2.34.pw_exp.conv.weight", 33.75),
)
"""The convolutions of Gemma 3n with the largest published weights."""


def finding(
    rule: str = "GD102",
    severity: Severity = "error",
    tensor: str | None = "a.weight",
    message: str = "3 of 64 elements become inf in float16.",
    measure: float = 3,
) -> Finding:
    """A finding; ``measure`` is the number that it is about."""
    names = {"GD101": "nonfinite-weight", "GD102": "fp16-weight-overflow", "GD104": "fp16-conv-overflow-risk"}
    return Finding(
        rule=rule,
        name=names.get(rule, "some-rule"),
        severity=severity,
        message=message,
        tensor=tensor,
        file=FILE,
        evidence={"measure": measure, "threshold": None},
        repair=Repair("clamp-overflow", "lossy"),
    )


def report(findings: Iterable[Finding] = (), tensors: Iterable[MeasuredTensor] | None = None) -> Report:
    """A complete report of these tensors (one sound tensor if None)."""
    measured = (tensor("a.weight"),) if tensors is None else tuple(tensors)
    return Report(
        version="1.2.3",
        source=Source("some model/", None, "safetensors", "gemma3n", (FileInfo(FILE, 2000, None, len(measured)),)),
        target_dtype="float16",
        loader="transformers",
        coverage=Coverage(len(measured), len(measured)),
        findings=tuple(findings),
        tensors=measured,
        seconds=0.5,
    )
