"""Setting a value in a JSON text and leaving every other byte of it as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["set_value"]

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class _Member:
    """Where one member of an object stands: its key's first character, its value's first, one past its last."""

    key: str
    begins: int
    value: int
    ends: int


def set_value(text: str, path: tuple[str, ...], value: str | float | bool | None) -> str:  # noqa: FBT001 - a JSON value
    """Set the value at a path of keys; a key that is not there becomes the last of its parent.

    Args:
        text: A JSON object, valid.
        path: Keys from the outermost object inwards.
        value: The new value.

    Raises:
        KeyError: If the path is empty, or leads through something that is no object.
    """
    at = _skip(text, 0)
    for depth, key in enumerate(path, 1):
        if text[at] != "{":
            raise KeyError(".".join(path))
        members = list(_members(text, at))
        found = [member for member in members if member.key == key]
        if not found and depth == len(path):
            return _appended(text, at, members, f"{json.dumps(key)}: {json.dumps(value)}")
        if not found:
            raise KeyError(".".join(path))
        if depth == len(path):
            return f"{text[: found[-1].value]}{json.dumps(value)}{text[found[-1].ends :]}"
        at = found[-1].value
    raise KeyError(".".join(path))


def _appended(text: str, at: int, members: list[_Member], member: str) -> str:
    """A new last member, set off as the first is."""
    if not members:
        return f"{text[: at + 1]}{member}{text[_skip(text, at + 1) :]}"
    gap, end = text[at + 1 : members[0].begins], members[-1].ends
    return f"{text[:end]},{gap or ' '}{member}{text[end:]}"


def _members(text: str, at: int) -> Iterator[_Member]:
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, after = _DECODER.raw_decode(text, at)
        value = _skip(text, _skip(text, after) + 1)
        _, ends = _DECODER.raw_decode(text, value)
        yield _Member(key, at, value, ends)
        at = _skip(text, ends)
        at = _skip(text, at + 1) if text[at] == "," else at


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at
