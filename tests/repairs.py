"""From a sick folder to a mended one, through the public functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gemma_doctor
from gemma_doctor.choices import Loader
from gemma_doctor.plans import Plan
from gemma_doctor.repair.evidence.calibration import Calibration


def plan(
    folder: Path,
    *passes: str,
    rules: Sequence[str] = (),
    loader: Loader = "transformers",
    calibration: Calibration | None = None,
) -> Plan:
    """What these passes (all of the usual ones where none is named) would do about these rules' findings."""
    report = gemma_doctor.scan(folder, gemma_doctor.Options(select=tuple(rules), loader=loader))
    return gemma_doctor.plan(report, passes=passes, calibration=calibration)


def carry_out(what: Plan, folder: Path, output: Path) -> Path:
    """The folder with the plan's result."""
    return gemma_doctor.repair(what, output, source=folder).output
