"""How far long work has come, on standard error: bytes, rate and time left, or the step that it is at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Bar", "bar", "steps"]

_PERIOD = 0.1  # seconds between two looks of the bar: 100,000 small tensors must not cost 100,000 redraws


@contextmanager
def bar(console: Console, doing: str) -> Iterator[Bar]:
    """A progress bar on ``console`` that leaves no trace of itself.

    Args:
        console: Where it is shown.
        doing: What takes long, such as ``"scanning"``.
    """
    words = TextColumn("{task.description}", markup=False)
    columns = (words, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(progress, doing)


@contextmanager
def steps(console: Console, doing: str) -> Iterator[Callable[[str], None]]:
    """The step that long work is at, and the time since it began, on ``console``; it leaves no trace of itself.

    Args:
        console: Where it is shown.
        doing: What is done first.

    Yields:
        What is told each further step, in words.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(doing, total=None)
        yield lambda words: progress.update(task, description=words)


class Bar:
    """A progress bar that worker threads may advance."""

    def __init__(self, progress: Progress, doing: str) -> None:
        self._progress = progress
        self._task = progress.add_task(doing, total=None)
        self._lock = threading.Lock()
        self._waiting = 0
        self._shown_at = 0.0

    def start(self, total_bytes: int) -> None:
        """It begins; it is about ``total_bytes``."""
        self._progress.update(self._task, total=total_bytes)

    def advance(self, nbytes: int) -> None:
        """``nbytes`` more are done."""
        with self._lock:
            self._waiting += nbytes
            now = time.monotonic()
            if now - self._shown_at < _PERIOD:
                return
            ready, self._waiting, self._shown_at = self._waiting, 0, now
        self._progress.advance(self._task, ready)
