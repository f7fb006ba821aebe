"""A plan and what became of it, as JSON for whoever runs repairs unattended; ``repair.schema.json`` describes it."""

from __future__ import annotations

import json
from dataclasses import asdict

from gemma_doctor.plans import Applied, Plan
from gemma_doctor.repair.documents import plan_document
from gemma_doctor.version import __version__

__all__ = ["outcome_text"]

_SCHEMA_VERSION = 1


def outcome_text(plan: Plan, applied: Applied | None) -> str:
    """The text of the document.

    Args:
        plan: The plan.
        applied: What was done; None where nothing was written.
    """
    document = {
        "schema_version": _SCHEMA_VERSION,
        "kind": "repair",
        "tool": {"name": "gemma-doctor", "version": __version__},
        "plan": plan_document(plan),
        "applied": None if applied is None else {**asdict(applied), "output": str(applied.output)},
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
