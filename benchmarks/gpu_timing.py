"""How the benchmarks of the GPU take the time, and what all of them need."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache

import torch

__all__ = ["GPU", "MIB", "race"]

GPU = torch.device("cuda")
MIB = 1 << 20

_FEWEST = 3
"""Runs of each entrant that count, however long they take."""


def race(
    entrants: Mapping[str, Callable[[], object]], rounds: int, *, hidden: bool = True, seconds: float = 60.0
) -> dict[str, float]:
    """Median seconds of each entrant on the GPU; they run in turns, after a turn that does not count.

    Args:
        entrants: What to run.
        rounds: How often, at most.
        hidden: Whether the GPU is kept busy while the host enqueues.
        seconds: After these no turn begins, once three have counted.
    """
    times: dict[str, list[float]] = {name: [] for name in entrants}
    begun = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > _FEWEST and time.perf_counter() - begun > seconds:
            break
        for name, run in entrants.items():
            taken = _timed(run, hidden=hidden)
            if turn:
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}


def _timed(run: Callable[[], object], *, hidden: bool) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    if hidden:
        _occupy()
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1000


def _occupy() -> None:
    """About 2 ms of work on a GPU of 3 TB/s."""
    for _ in range(3):
        _filler().zero_()


@cache
def _filler() -> torch.Tensor:
    return torch.empty(1 << 31, dtype=torch.uint8, device=GPU)
