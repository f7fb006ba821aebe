"""Writing one file of the output, and checking it: two threads, one behind the other.

The first writes piece after piece. The second follows: it reads each piece back through a mapping of the output,
produces it again from the source, compares the two, and feeds what it has read to SHA-256. So the check sees every
byte of every file while it is still in the page cache. A comparison with the source is stronger than a hash of both
would be, and six times cheaper; what bounds the speed is the one hash that the user is given.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gemma_doctor.checkpoint import FileBytes
from gemma_doctor.checkpoint.mapping import Mapping
from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.checkpoint.writer import copy_range, start_writeback, write_all
from gemma_doctor.errors import OutputError
from gemma_doctor.plans import WrittenFile
from gemma_doctor.repair.outfiles import Bytes, OutFile, Piece, Span, pieces

__all__ = ["StoppedError", "Stream"]

_LIBC = ctypes.CDLL(None)

_COMPARED = 1 << 18
"""Bytes read back, compared and hashed at a time: they stay in the processor's cache."""

_AHEAD = 4
"""Pieces that the writing may be ahead of the check."""


class StoppedError(Exception):
    """The work was called off."""


@dataclass(frozen=True, slots=True)
class Stream:
    """How files of one output are written.

    Attributes:
        source: The source's files.
        folder: The folder that becomes the output.
        advance: Told how many bytes have been written and checked.
        stop: Set where the work has been called off.
    """

    source: FileBytes
    folder: Path
    advance: Callable[[int], None]
    stop: threading.Event

    def write(self, out: OutFile) -> WrittenFile:
        """Write a file, check it and have it put on the disk.

        Args:
            out: The file.

        Raises:
            OSError: If it cannot be written.
            OutputError: If what is read back is not what was written.
            StoppedError: If the work has been called off.
        """
        path = self.folder / out.name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            digest = self._written(out, descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return WrittenFile(out.name, out.size, digest, linked=False)

    def adopt(self, out: OutFile) -> WrittenFile:
        """Check a file that is there already, a hard link, and hash it.

        Args:
            out: The file.

        Raises:
            OSError: If it cannot be read.
            OutputError: If it is not the source's.
            StoppedError: If the work has been called off.
        """
        digest = hashlib.sha256()
        for piece in pieces(out):
            self._go_on()
            digest.update(piece.produce(self.source).data)
            self.advance(piece.nbytes)
        if not os.path.samestat(os.fstat(self.source.descriptor(out.name)), (self.folder / out.name).stat()):
            raise OutputError(f"{shown(out.name)}: another file was linked. Let the source's writer finish, and retry.")
        return WrittenFile(out.name, out.size, digest.hexdigest(), linked=True)

    def _written(self, out: OutFile, target: int) -> str:
        digest = hashlib.sha256()
        if not out.size:
            return digest.hexdigest()
        os.ftruncate(target, out.size)
        written = Mapping(target, out.name, out.size)
        try:
            with _follower() as follow:
                for piece in pieces(out):
                    self._go_on()
                    self._put(piece, target)
                    found = written.bytes[piece.at : piece.at + piece.nbytes]
                    follow(partial(self._check, out.name, piece, found, digest.update))
            written.check()
        finally:
            written.close()
        return digest.hexdigest()

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise StoppedError

    def _put(self, piece: Piece, target: int) -> None:
        content = piece.produce(self.source)
        if isinstance(piece, Span):
            copy_range(self.source.descriptor(piece.file), piece.start, target, piece.at, content)
        else:
            write_all(target, piece.at, content)
        start_writeback(target, piece.at, piece.nbytes)

    def _check(self, name: str, piece: Piece, found: Bytes, update: Callable[[memoryview], None]) -> None:
        self._go_on()
        wanted = piece.produce(self.source)
        for start in range(0, piece.nbytes, _COMPARED):
            block = slice(start, start + _COMPARED)
            if not _same(found[block], wanted[block]):
                raise OutputError(
                    f"{shown(name)}: read back, the bytes from {piece.at + start:,} on are not what was written. "
                    "The source was written to meanwhile, or the disk fails. Check it, and repair again."
                )
            update(found[block].data)
        self.advance(piece.nbytes)


def _same(one: Bytes, other: Bytes) -> bool:
    """Whether two arrays of one size hold the same bytes; NumPy would write down each comparison first."""
    addresses = ctypes.c_void_p(one.ctypes.data), ctypes.c_void_p(other.ctypes.data)
    differ: int = _LIBC.memcmp(*addresses, ctypes.c_size_t(one.size))
    return not differ


@contextmanager
def _follower() -> Iterator[Callable[[Callable[[], None]], None]]:
    """A thread that does what it is given in order, a few tasks behind; its errors come out here."""
    under_way: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as pool:

        def follow(task: Callable[[], None]) -> None:
            if len(under_way) >= _AHEAD:
                under_way.popleft().result()
            under_way.append(pool.submit(task))

        yield follow
        for future in under_way:
            future.result()
