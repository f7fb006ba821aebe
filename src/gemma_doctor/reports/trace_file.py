"""What the reference of a verification measured, as the file that ``repair --calibration`` reads."""

from __future__ import annotations

import json
import math

from gemma_doctor.records import SCHEMA_VERSION, Report
from gemma_doctor.reports.figures import strict

__all__ = ["to_trace"]


def to_trace(report: Report) -> str:
    """The trace as a JSON document that ends in a newline, a module on a line; empty of modules for a scan.

    ``peak`` is the largest magnitude of what the module returned in float32, ``mean_square_min`` the least mean square
    over the channels at any position. A module that several runs went through stands there several
    times.
    """
    runs = report.verification.runs if report.verification else ()
    lines = [
        json.dumps(
            {
                "module": module.module,
                "run": run.modality,
                "peak": module.reference_absmax,
                "mean_square_min": strict(module.mean_square_min),
            },
            allow_nan=False,
        )
        for run in runs
        for module in run.modules
        if module.reference_absmax is not None and math.isfinite(module.reference_absmax)
    ]
    head = {
        "schema_version": SCHEMA_VERSION,
        "kind": "trace",
        "tool": {"name": "gemma-doctor", "version": report.version},
        "source": report.source.uri,
    }
    members = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    rows = ",\n    ".join(lines)
    return "{\n" + ",\n".join(members) + f',\n  "activations": [\n    {rows}\n  ]\n}}\n'
