"""SHA-256 of a file while it is being read, beside the reading where a core would idle otherwise.

Handing blocks to another thread costs a tenth of the work, and is worth it only for a core that has nothing to do.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK_BYTES", "Digest", "hashing"]

BLOCK_BYTES = 1 << 18
"""Bytes of one block. A block that was written stays in the processor's second-level cache until it is hashed."""

_AHEAD = 4
"""Blocks that the reading may be ahead of the hash."""


class Digest:
    """A SHA-256 that owns the blocks it is fed from: fill :meth:`spare`, then :meth:`feed` it, and so on."""

    def __init__(self, pool: ThreadPoolExecutor | None = None) -> None:
        """Begins.

        Args:
            pool: One thread that hashes; None to hash where :meth:`feed` is called.
        """
        self._sha256 = hashlib.sha256()
        self._pool = pool
        self._blocks = deque(np.empty(BLOCK_BYTES, np.uint8) for _ in range(1 if pool is None else _AHEAD))
        self._under_way: deque[Future[None]] = deque()

    def spare(self) -> npt.NDArray[np.uint8]:
        """A block that may be written over, shape (BLOCK_BYTES,)."""
        if len(self._under_way) == len(self._blocks):
            self._under_way.popleft().result()
        self._blocks.rotate(-1)
        return self._blocks[-1]

    def feed(self, block: npt.NDArray[np.uint8]) -> None:
        """Hash a block.

        Args:
            block: What :meth:`spare` gave last, or its beginning.
        """
        if self._pool is None:
            self._sha256.update(block.data)
        else:
            self._under_way.append(self._pool.submit(self._sha256.update, block.data))

    def hexdigest(self) -> str:
        """The hash of all blocks, in the order in which they were fed."""
        for future in self._under_way:
            future.result()
        return self._sha256.hexdigest()


@contextmanager
def hashing(*, aside: bool) -> Iterator[Digest]:
    """A new digest.

    Args:
        aside: Whether a thread of its own hashes.
    """
    if aside:
        with ThreadPoolExecutor(1) as pool:
            yield Digest(pool)
    else:
        yield Digest()
