"""How messages quote what a stranger's file says."""

from __future__ import annotations

__all__ = ["quoted", "shown"]

_LIMIT = 80


def quoted(text: str) -> str:
    """``text`` in quotes, control characters escaped, cut after 80 characters."""
    return repr(text if len(text) <= _LIMIT else f"{text[:_LIMIT]}…")


def shown(name: str) -> str:
    """A file's name as it is where that is short and printable, else quoted."""
    return name if name.isprintable() and len(name) <= _LIMIT else quoted(name)
