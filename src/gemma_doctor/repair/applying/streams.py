"""Writing one file of the output, and checking it block by block while it is in the processor's cache.

Each block is written; then it is read back from the file, compared with the source (edited anew where it is edited),
and fed to SHA-256, by a second thread where the file is large. A comparison with the source is stronger than a hash of
both would be, and many times cheaper. The disk is set to work every few MB, so that it is never idle and the fsync at
the end has next to nothing to wait for.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gemma_doctor.checkpoint import FileBytes
from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.checkpoint.writer import copy_range, start_writeback, write_all
from gemma_doctor.errors import OutputError
from gemma_doctor.plans import WrittenFile
from gemma_doctor.repair.applying.following import following
from gemma_doctor.repair.applying.outfiles import BLOCK_BYTES, Bytes, OutFile, Piece, Span, pieces

__all__ = ["StoppedError", "Stream"]

_LIBC = ctypes.CDLL(None)

_BURST = 8 << 20
"""Bytes after which the disk is set to work and progress is reported."""

_LARGE = 1 << 26
"""Bytes beyond which a file is worth a second thread."""


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

    def write(self, out: OutFile, mode: int) -> WrittenFile:
        """Write a file, check it and have it put on the disk.

        Args:
            out: The file.
            mode: Its permission bits, before the umask.

        Raises:
            OSError: If it cannot be written.
            OutputError: If what is read back is not what was written.
            StoppedError: If the work has been called off.
        """
        path = self.folder / out.name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            sha256 = self._fill(out, descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return WrittenFile(out.name, out.size, sha256, linked=False)

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
        burst = _Burst(self.advance)
        for piece in pieces(out):
            self._go_on()
            digest.update(piece.produce(self.source).data)
            burst.add(piece.nbytes)
        burst.end()
        if not os.path.samestat(os.fstat(self.source.descriptor(out.name)), (self.folder / out.name).stat()):
            raise OutputError(f"{shown(out.name)}: another file was linked. Let the source's writer finish, and retry.")
        return WrittenFile(out.name, out.size, digest.hexdigest(), linked=True)

    def _fill(self, out: OutFile, target: int) -> str:
        """Writes and checks every piece; the SHA-256 of all."""
        check = _Check(self.source, out.name, target, _Burst(self.advance, target))
        with following(check, aside=out.size > _LARGE) as follower:
            for piece in pieces(out):
                self._go_on()
                self._put(piece, target)
                follower.take(piece)
            follower.finish()
        return check.hexdigest()

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise StoppedError

    def _put(self, piece: Piece, target: int) -> None:
        content = piece.produce(self.source)
        if isinstance(piece, Span):
            copy_range(self.source.descriptor(piece.file), piece.start, target, piece.at, content)
        else:
            write_all(target, piece.at, content)


@dataclass(slots=True, eq=False)
class _Check:
    """Reads pieces back in their order, compares them with the source, and hashes them.

    Attributes:
        source: The source's files.
        name: The file that is written.
        target: Its descriptor.
        burst: Told of each piece.
    """

    source: FileBytes
    name: str
    target: int
    burst: _Burst
    _sha256: hashlib._Hash = field(default_factory=hashlib.sha256)
    _spare: Bytes = field(default_factory=lambda: np.empty(BLOCK_BYTES, np.uint8))

    def __call__(self, piece: Piece) -> None:
        """Check one piece.

        Raises:
            OutputError: If it is not what was to be written.
        """
        block = self._spare[: piece.nbytes]
        if not (_read_back(self.target, piece.at, block) and _same(block, piece.produce(self.source))):
            raise OutputError(
                f"{shown(self.name)}: read back, the bytes from {piece.at:,} on are not what was written. "
                "The source was written to meanwhile, or the disk fails. Check it, and repair again."
            )
        self._sha256.update(block.data)
        self.burst.add(piece.nbytes)

    def hexdigest(self) -> str:
        """The hash of all pieces."""
        self.burst.end()
        return self._sha256.hexdigest()


@dataclass(slots=True, eq=False)
class _Burst:
    """What has been done since the disk was last set to work and progress reported.

    Attributes:
        advance: Who is told.
        target: Descriptor of the file that is written; None where none is.
        begins: Where the burst begins.
        nbytes: Bytes in it.
    """

    advance: Callable[[int], None]
    target: int | None = None
    begins: int = 0
    nbytes: int = 0

    def add(self, nbytes: int) -> None:
        """Takes note of some bytes more."""
        self.nbytes += nbytes
        if self.nbytes >= _BURST:
            self.end()

    def end(self) -> None:
        """Ends the burst; the next begins where it ends."""
        if not self.nbytes:
            return
        if self.target is not None:
            start_writeback(self.target, self.begins, self.nbytes)
        self.advance(self.nbytes)
        self.begins += self.nbytes
        self.nbytes = 0


def _read_back(target: int, at: int, block: Bytes) -> bool:
    """Fills the block from the file; False where the file ends first."""
    view = block.data
    done = 0
    while done < len(view):
        count = os.preadv(target, [view[done:]], at + done)
        if not count:
            return False
        done += count
    return True


def _same(one: Bytes, other: Bytes) -> bool:
    """Whether two arrays of one size hold the same bytes; NumPy would write down each comparison first."""
    addresses = ctypes.c_void_p(one.ctypes.data), ctypes.c_void_p(other.ctypes.data)
    differ: int = _LIBC.memcmp(*addresses, ctypes.c_size_t(one.size))
    return not differ
