"""Reading the JSON files that a user hands to ``repair``: plans and traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gemma_doctor.errors import UsageError
from gemma_doctor.nodes import Node, parse_json

__all__ = ["read"]

_MAX_BYTES = 256 << 20  # a plan that casts every tensor of the largest known models has some ten MB


def read(path: Path, kind: str, version: int) -> Node:
    """The document that a file holds, its ``kind`` and ``schema_version`` checked.

    Args:
        path: The file.
        kind: What it must call itself: ``"plan"`` or ``"trace"``.
        version: The schema version that is understood.

    Raises:
        UsageError: If it cannot be read, or is something else.
    """

    def error(message: str) -> UsageError:
        return UsageError(f"{path} is not a {kind} that can be read: {message}")

    document = parse_json(_bytes(path, error), error)
    document.member("kind").choice((kind,))
    found = document.member("schema_version").count()
    if found != version:
        document.refuse(f"schema version {found}; this gemma-doctor reads version {version}")
    return document


def _bytes(path: Path, error: Callable[[str], UsageError]) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as problem:
        raise error(str(problem.strerror)) from problem
    if len(data) > _MAX_BYTES:
        raise error(f"it is larger than {_MAX_BYTES >> 20} MiB; is it the right file?")
    return data
