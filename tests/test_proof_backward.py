"""A backward pass that float16 cannot run below a norm's window is sound after the repair, on the real encoder."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tiny_models  # noqa: F401  # makes timm importable beside a torch for CPUs
import torch
from checkpoints import healthy, write
from faults import ENCODER, FAULTS, IMAGES3N, POINTWISE
from repairs import carry_out, plan
from timm.layers.fast_norm import rms_norm2d

from gemma_doctor import doctor
from gemma_doctor.plans import Plan, Scale
from gemma_doctor.records import Report
from gemma_doctor.repair.evidence.calibration import Calibration, read_calibration
from gemma_doctor.repair.evidence.windows import FLOOR
from gemma_doctor.reports.trace_file import to_trace
from gemma_doctor.verify.measures import Measures, Request

NAME = "norm window from below, overflow backward only"
IMAGE = Measures(device="cpu", modalities=("image",), request=Request(length=16, side=64))
SUNK = (
    f"{POINTWISE}.conv.weight",
    f"{ENCODER}blocks.0.1.conv_exp.weight",
    f"{ENCODER}blocks.2.10.pw_exp.conv.weight",
    f"{ENCODER}blocks.2.9.attn.key.down_conv.weight",
)


def verified(folder: Path) -> Report:
    with torch.enable_grad():
        return doctor.verify(folder, IMAGE)


def calibration(report: Report, path: Path) -> Calibration:
    path.write_text(to_trace(report))
    return read_calibration(path)


def powers(what: Plan) -> dict[str, int]:
    return {edit.tensor: edit.exponent for edit in what.edits if isinstance(edit, Scale)}


@pytest.mark.parametrize("factor", [1.0, 0.98, 1.02, 1.2])
def test_the_floor_is_where_the_norms_gradient_leaves_float16(factor: float) -> None:
    """Around the stated mean square, on timm's own norm; float16 rounds by less than these factors."""
    with torch.enable_grad():
        x = torch.full((1, 16, 1, 1), math.sqrt(FLOOR * factor), dtype=torch.float16, requires_grad=True)
        rms_norm2d(x, [16], None, 1e-6).sum().backward()
    assert x.grad is not None
    if factor != 1.0:
        assert bool(x.grad.isfinite().all()) == (factor > 1)


def test_a_backward_pass_below_the_window_is_mended_by_a_trace(tmp_path: Path) -> None:
    sick = next(case for case in FAULTS if case.name == NAME).build(tmp_path / "sick")
    before = verified(sick)
    assert {(finding.rule, finding.repair.pass_name if finding.repair else None) for finding in before.findings} == {
        ("GD402", "rescale-conv")
    }
    prescription = plan(sick, "rescale-conv", calibration=calibration(before, tmp_path / "trace.json"))
    assert powers(prescription)[f"{POINTWISE}.conv.weight"] > 0
    assert all(power > 0 for power in powers(prescription).values())
    assert {(edit.reason.rule, edit.exactness) for edit in prescription.edits} == {("GD402", "eps")}
    after = verified(carry_out(prescription, sick, tmp_path / "mended"))
    assert after.findings == ()


def test_the_middle_of_the_window_is_reached_from_both_sides(tmp_path: Path) -> None:
    """Some convolutions far above it, some far below it, in one plan; the model then trains in float16."""
    tensors = healthy(IMAGES3N)
    for name in SUNK:
        tensors[name] = tensors[name] * np.float32(2.0**-5)
    loud = f"{ENCODER}blocks.2.32.pw_exp.conv.weight"
    tensors[loud] = tensors[loud] * np.float32(2.0**9)
    sick = write(tmp_path / "sick", tensors, IMAGES3N)
    before = verified(sick)
    assert {"GD401", "GD402"} & {finding.rule for finding in before.findings}
    prescription = plan(sick, "rescale-conv", calibration=calibration(before, tmp_path / "trace.json"))
    assert [name for name, power in powers(prescription).items() if power < 0] == [loud]
    assert powers(prescription).keys() >= {*SUNK}
    assert verified(carry_out(prescription, sick, tmp_path / "mended")).findings == ()
