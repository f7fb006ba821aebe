"""The text file of a repository that stands for a checkpoint, and the line of each tensor in it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from gemma_doctor.checkpoint.layout import find_layout
from gemma_doctor.errors import SourceNotFoundError
from gemma_doctor.reports.guide import Anchor

__all__ = ["find_anchor"]

_CONFIG = "config.json"
_ENTRY = re.compile(r'\s*("(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")\s*:\s*"')


def find_anchor(source: str) -> Anchor:
    """Where to show what is found in a checkpoint: its index, its config, or its first tensor file.

    Args:
        source: SOURCE as the user gave it; of what is not on this machine, it stands for itself.
    """
    try:
        layout = find_layout(source)
    except SourceNotFoundError:
        return Anchor(source)
    if layout.index is not None:
        index = layout.root / layout.index
        return Anchor(_in_repository(index), _lines(index))
    config = layout.root / _CONFIG
    return Anchor(_in_repository(config if config.is_file() else layout.root / layout.files[0]))


def _in_repository(path: Path) -> str:
    """The path relative to what the workflow has checked out, or to the current folder; absolute outside of it."""
    root = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd())
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  # links stay: a repository knows the link, not its target
    return (absolute.relative_to(root) if absolute.is_relative_to(root) else absolute).as_posix()


def _lines(index: Path) -> Mapping[str, int]:
    """The line of each key of an index that has one on each line, as transformers writes it."""
    lines: dict[str, int] = {}
    try:
        text = index.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}  # the report says what is wrong with it
    for number, line in enumerate(text.split("\n"), 1):
        if match := _ENTRY.match(line):
            lines[json.loads(match[1], strict=False)] = number
    return lines
