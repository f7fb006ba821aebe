"""What somebody may have meant who wrote a name that is not known.

The distance is counted here, for difflib knows no swapped letters: to it GD405 is nearer to GD140 than GD104 is. A
compiled library (rapidfuzz has this distance) would be a dependency for a dozen lines.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["closest", "did_you_mean"]

_LONGEST = 60  # a longer word is no slip of the pen, and would cost its length squared


def closest(word: str, known: Iterable[str], most: int = 1) -> tuple[str, ...]:
    """The known words that are few slips of the pen away, the nearest first; their order breaks ties.

    A slip is a letter too many, too few, or wrong, or two neighbours swapped (the optimal string alignment distance);
    a third of the letters may be such. Upper and lower case are the same.

    Args:
        word: What was written.
        known: What could have been meant.
        most: How many to name.
    """
    if len(word) > _LONGEST:
        return ()
    rated = [(_slips(word.lower(), name.lower()), name) for name in known if len(name) <= _LONGEST]
    near = [(slips, name) for slips, name in rated if slips <= max(1, len(word) // 3)]
    return tuple(name for _, name in sorted(near, key=lambda pair: pair[0])[:most])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` where one of ``known`` is close to ``word``, else the whole list."""
    names = sorted(known)
    close = closest(word, names)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}"


def _slips(one: str, other: str) -> int:
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        older, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted)))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                row[j] = min(row[j], older[j - 2] + 1)
    return row[-1]
