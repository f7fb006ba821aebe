"""``gemma-doctor.json``: what a repaired checkpoint was made from, by what plan, and the hash of each of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from gemma_doctor.plans import Plan, WrittenFile
from gemma_doctor.repair.documents import plan_document
from gemma_doctor.version import __version__

__all__ = ["manifest", "relisted"]

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


def relisted(document: bytes, name: str, content: bytes) -> bytes:
    """The document with one file's size and hash as they are now.

    Args:
        document: What :func:`manifest` made.
        name: The file, relative to the output; it need not be listed yet.
        content: Its bytes.
    """
    known = json.loads(document)
    entry = {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    others = [file for file in known["files"] if file["name"] != name]
    known["files"] = sorted([*others, entry], key=lambda file: str(file["name"]))
    return (json.dumps(known, indent=2) + "\n").encode()
