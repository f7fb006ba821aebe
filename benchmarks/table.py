"""Timing, and one row of the table for each figure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["HEAD", "Row", "line", "markdown", "race"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure beside another.

    Attributes:
        what: What was measured.
        ours: Our figure, with its unit.
        beside: What it is measured against, and its figure.
        ratio: Ours over theirs, as the target means it; None where the target is a figure.
        target: What is asked; empty for a row that only explains another.
        met: Whether it is reached; None where nothing is asked.
    """

    what: str
    ours: str
    beside: str
    ratio: float | None
    target: str
    met: bool | None


def race(entrants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each entrant; they run in turns, so that a noisy moment hits all of them.

    Args:
        entrants: Name -> what to run.
        rounds: How often each runs, after one run that does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    for turn in range(rounds + 1):
        for name, run in entrants.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


HEAD = "| what | ours | beside it | ratio | target | met |\n| --- | --- | --- | --- | --- | --- |"


def line(row: Row) -> str:
    """One row of the table."""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    met = "" if row.met is None else "yes" if row.met else "**no**"
    return f"| {row.what} | {row.ours} | {row.beside} | {ratio} | {row.target} | {met} |"


def markdown(rows: list[Row]) -> str:
    """The table."""
    return "\n".join([HEAD, *map(line, rows)]) + "\n"
