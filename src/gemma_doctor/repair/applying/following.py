"""Work that follows other work, item by item and in its order: on a thread of its own where that pays, else at once.

One thread writes a file, and another follows a few MB behind, reading back, comparing and hashing: each of the two
takes about half of the time, and a checkpoint has as a rule one file that is larger than all others together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["Follower", "following"]

Item = TypeVar("Item")

_BATCH = 16
"""Items that are handed over at once: handing one over costs as much as a tenth of the work on a block."""

_BEHIND = 4
"""Batches that may wait: what they are about should still be in the processor's cache."""


class Follower(Generic[Item]):
    """Does something with each item it takes, in order."""

    def __init__(self, work: Callable[[Item], None], pool: ThreadPoolExecutor | None = None) -> None:
        """Begins.

        Args:
            work: What to do with an item.
            pool: One thread that does it; None to do it where :meth:`take` is called.
        """
        self._work, self._pool = work, pool
        self._batch: list[Item] = []
        self._under_way: deque[Future[None]] = deque()

    def take(self, item: Item) -> None:
        """Have the work done on an item, now or soon; an error of an earlier item comes out here.

        Args:
            item: It.
        """
        if self._pool is None:
            self._work(item)
            return
        self._batch.append(item)
        if len(self._batch) == _BATCH:
            self._hand_over(self._pool)

    def finish(self) -> None:
        """Waits until the work is done on every item; an error of one of them comes out."""
        if self._pool is not None:
            self._hand_over(self._pool)
        while self._under_way:
            self._under_way.popleft().result()

    def _hand_over(self, pool: ThreadPoolExecutor) -> None:
        if len(self._under_way) == _BEHIND:
            self._under_way.popleft().result()
        self._under_way.append(pool.submit(self._all, self._batch))
        self._batch = []

    def _all(self, batch: list[Item]) -> None:
        for item in batch:
            self._work(item)


@contextmanager
def following(work: Callable[[Item], None], *, aside: bool) -> Iterator[Follower[Item]]:
    """A follower whose thread ends with the ``with`` block. Call :meth:`Follower.finish` before its end.

    Args:
        work: What to do with an item.
        aside: Whether a thread of its own does it.
    """
    if not aside:
        yield Follower(work)
        return
    pool = ThreadPoolExecutor(1)
    try:
        yield Follower(work, pool)
    finally:
        pool.shutdown(cancel_futures=True)
