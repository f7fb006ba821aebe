"""Names as people read them: harmless, short enough, and folded where layers repeat."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile

__all__ = ["MAX_NAME", "MAX_TEXT", "clipped", "common_prefix", "elide", "fold", "ranges", "safe_text"]

MAX_NAME = 240
"""Characters of a name that are shown anywhere; Gemma's longest has 84."""

MAX_TEXT = 1000
"""Characters of a message that documents show; ours have at most about 600, without the names that they quote."""

_DOTS = "…"
_HEAD = 8  # of an elided name, the tail tells tensors apart: the head keeps a third, and at most this many characters


def safe_text(text: str) -> str:
    r"""``text`` with everything that a terminal might act upon written as an escape.

    Control characters, ANSI sequences, line breaks, bidirectional controls, lone surrogates and invisible
    characters come out as ``\x1b``, ``\u202e`` …; what is printable stays. The result is one line. It is plain text:
    whoever prints it must not read markup into it.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def clipped(text: str, most: int = MAX_TEXT) -> str:
    """``text`` made safe as by :func:`safe_text`, and cut after ``most`` characters."""
    text = safe_text(text)
    return text if len(text) <= most else f"{text[:most]}{_DOTS}"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def elide(name: str, width: int = MAX_NAME) -> str:
    """``name`` in at most ``width`` characters, its middle replaced by ``…`` where it is longer."""
    if len(name) <= width:
        return name
    room = max(width - len(_DOTS), 0)
    head = min(room // 3, _HEAD)
    return f"{name[:head]}{_DOTS}{name[len(name) - (room - head) :]}"


_NUMBER = re.compile(r"(?<![^.])(?:0|[1-9][0-9]{0,5})(?![^.])")  # a whole component between dots


def fold(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Names that differ in one layer number each, under one pattern: ``layers.{20..29}.mlp.up_proj.weight``.

    Law: the lists together hold every name exactly once.

    Returns:
        (pattern, the names that it stands for) in order of their first members; a name on its own is its pattern.
    """
    families: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        families.setdefault(tuple(_NUMBER.split(name)), []).append(name)
    return [(_pattern(group), group) for members in families.values() for group in _split(members)]


def _split(members: list[str]) -> list[list[str]]:
    """The members, parted so that each part varies in one number only: the one that makes the fewest parts."""
    numbers = [tuple(_NUMBER.findall(name)) for name in members]
    varied = [place for place, column in enumerate(zip(*numbers, strict=True)) if len(set(column)) > 1]
    if len(varied) <= 1:
        return [members]
    return min((_parts(members, numbers, place) for place in reversed(varied)), key=len)


def _parts(members: list[str], numbers: list[tuple[str, ...]], place: int) -> list[list[str]]:
    """The members, parted by all their numbers but the one at ``place``."""
    parts: dict[tuple[str, ...], list[str]] = {}
    for name, row in zip(members, numbers, strict=True):
        parts.setdefault(row[:place] + row[place + 1 :], []).append(name)
    return list(parts.values())


def _pattern(group: Sequence[str]) -> str:
    """The names of a group as one: their only varying number becomes a set of ranges."""
    columns = zip(*(_NUMBER.findall(name) for name in group), strict=True)
    written = iter([column[0] if len(set(column)) == 1 else ranges(column) for column in columns])
    return _NUMBER.sub(lambda _match: next(written), group[0])


def common_prefix(names: Sequence[str]) -> str:
    """The leading components that all names share, up to and with a dot; empty for a single name."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = takewhile(lambda column: len(set(column)) == 1, columns) if len(names) > 1 else ()
    return "".join(f"{column[0]}." for column in shared)


def ranges(numbers: Iterable[str]) -> str:
    """``{1,3..7}`` for the numbers 1, 3, 4, 5, 6, 7."""
    runs: list[list[int]] = []
    for number in sorted(set(map(int, numbers))):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(_run(low, high) for low, high in runs) + "}"


def _run(low: int, high: int) -> str:
    if high - low > 1:
        return f"{low}..{high}"
    return str(low) if low == high else f"{low},{high}"
