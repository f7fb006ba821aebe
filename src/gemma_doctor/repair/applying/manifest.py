"""``gemma-doctor.json``: what a repaired checkpoint was made from, by what plan, and the hash of each of its files."""

from __future__ import annotations

import json
from collections.abc import Iterable

from gemma_doctor.plans import Plan, WrittenFile
from gemma_doctor.repair.documents import plan_document
from gemma_doctor.version import __version__

__all__ = ["manifest"]

_SCHEMA_VERSION = 1


def manifest(plan: Plan, files: Iterable[WrittenFile]) -> bytes:
    """The document as it is stored; it holds no time, and no path but the plan's own.

    Args:
        plan: The plan, with the source's name and fingerprint.
        files: The output's other files.
    """
    document = {
        "schema_version": _SCHEMA_VERSION,
        "tool": {"name": "gemma-doctor", "version": __version__},
        "plan": plan_document(plan),
        "files": [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in files],
    }
    return (json.dumps(document, indent=2) + "\n").encode()
