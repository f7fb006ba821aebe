"""Threads that wait for a network, and can be called off: an error or Ctrl-C does not sit out what they wait for."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

__all__ = ["CalledOff", "Waiters", "go_on", "sleep"]

_HERE = threading.local()
"""Of each thread of a pool: the event that calls it off. It is the thread's own, so nothing is shared."""


class CalledOff(Exception):  # noqa: N818 - ends a thread whose result nobody asks for any more
    """What the thread was to do is no longer wanted."""


class Waiters(ThreadPoolExecutor):
    """Threads for work that waits. A ``with`` block that an exception leaves calls them off."""

    def __init__(self, threads: int, name: str) -> None:
        """No thread is started yet.

        Args:
            threads: How many at most.
            name: What their names begin with.
        """
        self._off = threading.Event()
        super().__init__(threads, name, initializer=_adopt, initargs=(self._off,))

    def call_off(self) -> None:
        """Starts nothing more, and ends every :func:`sleep`; what is under way ends at its next step."""
        self._off.set()
        self.shutdown(wait=False, cancel_futures=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is not None:
            self.call_off()
        return super().__exit__(kind, error, trace)


def go_on() -> None:
    """Says whether this thread's work is still wanted.

    Raises:
        CalledOff: If it is not.
    """
    off: threading.Event | None = getattr(_HERE, "off", None)
    if off is not None and off.is_set():
        raise CalledOff


def sleep(seconds: float) -> None:
    """Sleeps as long, in whatever thread.

    Raises:
        CalledOff: As soon as the thread's pool is called off.
        KeyboardInterrupt: In the main thread, as soon as it comes.
    """
    off: threading.Event | None = getattr(_HERE, "off", None)
    if off is None:
        time.sleep(seconds)
    elif off.wait(seconds):
        raise CalledOff


def _adopt(off: threading.Event) -> None:
    _HERE.off = off
