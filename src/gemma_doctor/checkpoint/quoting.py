"""How messages quote what a stranger's file says."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

__all__ = ["listed", "quoted", "shown", "without_secrets"]

_LIMIT = 80


def quoted(text: str) -> str:
    """``text`` in quotes, control characters escaped, cut after 80 characters."""
    return repr(text if len(text) <= _LIMIT else f"{text[:_LIMIT]}…")


def shown(name: str) -> str:
    """A file's name as it is where that is short and printable, else quoted."""
    return name if name.isprintable() and len(name) <= _LIMIT else quoted(name)


def listed(names: tuple[str, ...]) -> str:
    """The first three of some names, for a message."""
    return f"{', '.join(map(shown, names[:3]))}{', …' if len(names) > 3 else ''}"  # noqa: PLR2004


def without_secrets(uri: str) -> str:
    """A URL without its user, password and query, which may be a signature; what is no URL stays as it is."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
