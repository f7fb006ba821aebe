"""Planted faults: the true first operation is named; what is large but sound raises no alarm.

tests/faults.py holds the cases; tools/fault_table.py prints what other means say of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models  # noqa: F401  # makes timm importable beside a torch for CPUs
import torch
from faults import CONTROLS, FAULTS, Case

from gemma_doctor import doctor
from gemma_doctor.records import Report
from gemma_doctor.verify.measures import Measures, Request

SHORT = Request(length=16, side=64)


def verified(case: Case, folder: Path) -> Report:
    with torch.enable_grad():
        return doctor.verify(
            case.build(folder / "checkpoint"),
            Measures(device="cpu", modalities=(case.modality,), backward=case.backward, request=_request(case)),
        )


def _request(case: Case) -> Request:
    return Request(length=16) if case.config["model_type"] == "gemma3" else SHORT


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.name)
def test_the_first_failing_operation_is_named(case: Case, tmp_path: Path) -> None:
    report = verified(case, tmp_path)
    (run,) = report.verification.runs if report.verification else ()
    assert run.first_failure is not None
    seen = run.first_failure.activation
    assert (seen.phase, seen.module, seen.op) == case.where
    assert case.rule in {finding.rule for finding in report.findings}
    assert doctor.exit_code(report) == 1
    assert (run.first_failure.excess or 0) > 0


@pytest.mark.parametrize("case", CONTROLS, ids=lambda case: case.name)
def test_what_is_large_but_sound_raises_no_alarm(case: Case, tmp_path: Path) -> None:
    report = verified(case, tmp_path)
    assert report.findings == ()
    assert doctor.exit_code(report) == 0
