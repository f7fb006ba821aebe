"""Which path of this machine somebody may have meant."""

from __future__ import annotations

import os
from pathlib import Path

from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.spelling import closest

__all__ = ["alike"]

_MOST = 10_000  # names that are looked at


def alike(path: str) -> str:
    """``" (is 'model' meant?)"`` where a neighbour of a path that is not there has nearly its name, else nothing.

    Args:
        path: The path as the user gave it.
    """
    parent, name = os.path.split(path.rstrip("/"))
    close = closest(name, _neighbours(parent or "."))
    return f" (is {shown(str(Path(parent) / close[0]))} meant?)" if close else ""


def _neighbours(folder: str) -> list[str]:
    """The names beside it, sorted; none where they cannot be listed or are too many."""
    try:
        names = os.listdir(folder)  # noqa: PTH208  # names only: there may be many
    except OSError:
        return []
    return sorted(names) if len(names) <= _MOST else []
