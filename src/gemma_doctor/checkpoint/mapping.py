"""A file mapped into memory, of which a vanishing page is an error and not the end of the process.

Reading through a mapping is the fastest way to read (``pread`` copies every byte once more), but where a mapped
file is cut short, or its disk fails, touching the lost page raises SIGBUS, and that kills a process. Here it does
not: while a mapping is open, a SIGBUS handler lays zero pages over every open mapping and marks it lost, and
whoever computed on one asks :meth:`Mapping.check` before believing the result.

The handler is Python code run on the thread that touched the page. That is sound because the fault is synchronous:
the thread was reading numbers in a loop, and holds no lock that the handler could wait for.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.errors import ChangedError

__all__ = ["Mapping"]

_MAP_FIXED = 0x10  # <sys/mman.h> of Linux and of macOS; the mmap module does not export it
_FAILED = ctypes.c_void_p(-1).value


class Mapping:
    """The bytes of an open file, for any number of threads.

    Attributes:
        bytes: All of them, read-only, shape (size,). Zeros once they are lost.
        lost: Whether a page was gone when it was touched, here or in another mapping of that time.
        mended: Whether zero pages lie where the lost ones were.
    """

    def __init__(self, descriptor: int, name: str, size: int) -> None:
        """Maps a file from its beginning.

        Args:
            descriptor: The open file; the mapping outlives it.
            name: How messages call it.
            size: Bytes to map: at least one, and no more than the file has.
        """
        self._name = name
        mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_SEQUENTIAL"):
            mapped.madvise(mmap.MADV_SEQUENTIAL)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(mapped, np.uint8)
        self.lost = False
        self.mended = False
        _GUARD.watch(self)

    def check(self) -> None:
        """Says whether every byte read so far was the file's.

        Raises:
            ChangedError: If one was not: the file has been cut short, or its disk has failed.
        """
        if self.lost:
            raise ChangedError(
                f"{shown(self._name)}: the file was cut short, or its disk failed, while it was read. "
                "Let the writer finish and scan again, or check the disk."
            )

    def close(self) -> None:
        """Stops watching; the memory goes when the last array that looks at it does."""
        _GUARD.unwatch(self)


class _Guard:
    """The process's SIGBUS handler, in place while a mapping is open."""

    def __init__(self) -> None:
        self._open: list[Mapping] = []
        self._late: set[int] = set()
        self._lock = threading.Lock()
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._on_fault)
        self._libc: Any = None
        self._before: int | None = None

    def watch(self, mapping: Mapping) -> None:
        with self._lock:
            if not self._open:
                self._before = self._connect().signal(signal.SIGBUS, ctypes.cast(self._handler, ctypes.c_void_p))
            self._open.append(mapping)

    def unwatch(self, mapping: Mapping) -> None:
        with self._lock:
            if mapping in self._open:
                self._open.remove(mapping)
                if not self._open:
                    self._connect().signal(signal.SIGBUS, self._before)

    def _connect(self) -> Any:  # noqa: ANN401  # a ctypes library has the functions that it is asked for
        """The C library, its two functions declared."""
        if self._libc is None:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = (
                *(ctypes.c_void_p, ctypes.c_size_t),
                *(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64),
            )
            self._libc = libc
        return self._libc

    def _on_fault(self, _signal: int) -> None:
        """Lays zero pages over every open mapping, so that the faulting instruction can go on.

        Several threads may fault at once. Whoever finds all mended came late and simply tries again; who comes back
        although nothing was mended since has a fault that is somebody else's: the handler of before takes it.
        """
        torn = [mapping for mapping in tuple(self._open) if not mapping.mended]
        if torn:
            self._late.clear()
            for mapping in torn:
                self._mend(mapping)
        elif threading.get_ident() in self._late:
            self._libc.signal(signal.SIGBUS, self._before)
        else:
            self._late.add(threading.get_ident())

    def _mend(self, mapping: Mapping) -> None:
        mapping.lost = True  # before any zero can be read; mended only after, for the mmap lets other threads run
        address, size = mapping.bytes.ctypes.data, mapping.bytes.size
        flags = _MAP_FIXED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        if self._libc.mmap(address, size, mmap.PROT_READ, flags, -1, 0) == _FAILED:
            self._libc.signal(signal.SIGBUS, self._before)
        mapping.mended = True


_GUARD = _Guard()
