"""Trying again: when, how long to wait, and when to give up."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from gemma_doctor.checkpoint.waiting import sleep
from gemma_doctor.errors import TransferError

__all__ = ["AGAIN", "Again", "Patience", "patiently", "retry_after"]

T = TypeVar("T")
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses of HTTP that may be others next time."""

_TRIES = 5
_FIRST_WAIT = 0.5  # seconds; each further one twice as long
_LONGEST_WAIT = 8.0
_LONGEST_ASKED = 120.0


class Again(Exception):  # noqa: N818 - never leaves this room
    """A request failed in a way that the next may not.

    Attributes:
        wait: Seconds that the server asks to wait; None where it does not say.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(slots=True)
class Patience:
    """How often something has failed in a row.

    Attributes:
        what: What is tried, as messages call it.
    """

    what: str
    _failed: int = field(default=0, init=False)

    def reset(self) -> None:
        """It got on: the next failure is a first one."""
        self._failed = 0

    def wait(self, again: Again) -> None:
        """Waits before the next try: as long as the server asks, else twice as long as before, with some chance.

        Raises:
            TransferError: If it has failed too often, or the server asks for too long.
            CalledOff: If the thread's pool is called off meanwhile.
        """
        self._failed += 1
        if self._failed >= _TRIES:
            raise TransferError(f"{self.what}: {again}, {self._failed} times in a row. Check the network; try later.")
        if again.wait is not None and again.wait > _LONGEST_ASKED:
            raise TransferError(f"{self.what}: {again}; it asks to wait for {again.wait:,.0f} s. Try then.")
        backoff = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (self._failed - 1))
        sleep(backoff * random.uniform(0.75, 1.25) if again.wait is None else again.wait)  # noqa: S311


def patiently(what: str, call: Callable[[], T]) -> T:
    """What ``call`` returns, once it does not raise :class:`Again`.

    Args:
        what: What is tried, as messages call it.
        call: One try.

    Raises:
        TransferError: If it fails too often.
    """
    patience = Patience(what)
    while True:
        try:
            return call()
        except Again as again:
            patience.wait(again)


def retry_after(value: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header; None where there is none, or a date (RFC 9110, 10.2.3)."""
    return float(value) if value is not None and value.isascii() and value.isdigit() else None
