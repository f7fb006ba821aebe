"""Reading byte ranges of a checkpoint's files, for measurement."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemma_doctor.checkpoint.files import open_regular
from gemma_doctor.checkpoint.mapping import Mapping
from gemma_doctor.checkpoint.model import Checkpoint
from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.checkpoint.tensor_bytes import TensorBytes
from gemma_doctor.errors import ChangedError, CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["FileBytes"]


@dataclass(frozen=True, slots=True)
class _Opened:
    """An open file and what it was when it was opened."""

    descriptor: int
    state: os.stat_result
    mapping: Mapping


class FileBytes(TensorBytes):
    """The bytes of tensor files on this machine, for any number of threads at once.

    A context manager. Files are opened as they are first read, and closed at its end. At its end, too, each of
    them must still be what it was when it was opened, or :class:`ChangedError` says which one is not: what has
    been measured then is neither the old file nor the new one.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._root = checkpoint.root
        self._sizes = {info.name: info.size for info in checkpoint.files}
        self._headers = {info.name: info.header for info in checkpoint.files if info.header}
        self._opened: dict[str, _Opened] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> FileBytes:  # noqa: PYI034  # typing.Self needs Python 3.11
        return self

    def close(self) -> None:
        """Closes all files; the end of the ``with`` block does it."""
        for opened in self._opened.values():
            opened.mapping.close()
            os.close(opened.descriptor)
        self._opened.clear()

    def read(self, file: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The bytes of a range of a file, mapped and not copied.

        The disk is read when they are touched. That a page was gone by then comes out at the end of the ``with``
        block.

        Args:
            file: Name of the file, as in :class:`TensorInfo`.
            start: Offset of the first byte.
            stop: Offset one past the last.

        Returns:
            Read-only bytes, shape (stop - start,).

        Raises:
            ChangedError: If the file has not the size it had when its header was read, or is gone.
            CheckpointError: If the file cannot be opened or mapped.
        """
        return self._open(file).mapping.bytes[start:stop]

    def descriptor(self, file: str) -> int:
        """The open file, read-only, for as long as the ``with`` block lasts.

        Args:
            file: Name of the file, as in :class:`TensorInfo`.

        Raises:
            ChangedError: If the file has not the size it had when its header was read, or is gone.
            CheckpointError: If the file cannot be opened or mapped.
        """
        return self._open(file).descriptor

    def header(self, file: str) -> bytes:
        """What stands before the first tensor: of a safetensors file the length word and the JSON, padding included.

        Args:
            file: Name of the file, as in :class:`TensorInfo`.

        Raises:
            ChangedError: If the file has not the size it had when its header was read, or is gone.
            CheckpointError: If the file cannot be opened or mapped.
        """
        length = self._headers.get(file) or 8 + int.from_bytes(self.read(file, 0, 8).tobytes(), "little")
        return self.read(file, 0, length).tobytes()

    def check(self) -> None:
        """Says whether every file read so far is still what it was; the end of the ``with`` block asks it too.

        Raises:
            ChangedError: If one is not.
        """
        for file, opened in self._opened.items():
            self._check_unchanged(file, opened)
        for opened in self._opened.values():  # last, for all files are lost with one: better name that one
            opened.mapping.check()

    def _open(self, file: str) -> _Opened:
        opened = self._opened.get(file)
        if opened is not None:
            return opened
        with self._lock:
            if file not in self._opened:
                self._opened[file] = self._open_first(file)
            return self._opened[file]

    def _open_first(self, file: str) -> _Opened:
        try:
            descriptor, state = open_regular(self._root / file, file)
        except FileNotFoundError:
            raise _changed(file, "it is gone") from None
        try:
            if state.st_size != self._sizes[file]:
                raise _changed(file, f"it had {self._sizes[file]:,} bytes, and has {state.st_size:,} now")
            return _Opened(descriptor, state, Mapping(descriptor, file, state.st_size))
        except OSError as error:
            os.close(descriptor)
            what = f"{shown(file)}: it cannot be mapped into memory: {error.strerror}"
            raise CheckpointError(f"{what}. Copy it to a local disk, or raise the limit (ulimit -v).") from None
        except ValueError:  # what mmap says where the file has become shorter than it was a moment ago
            os.close(descriptor)
            raise _changed(file, "it was cut short") from None
        except ChangedError:
            os.close(descriptor)
            raise

    def _check_unchanged(self, file: str, opened: _Opened) -> None:
        """The file must be as it was, and its name still lead to it."""
        if _identity(os.fstat(opened.descriptor)) != _identity(opened.state):
            raise _changed(file, "it was written to")
        try:
            now = (self._root / file).stat()
        except OSError:
            raise _changed(file, "it was moved or deleted") from None
        if _identity(now) != _identity(opened.state):
            raise _changed(file, "another file has taken its place")


def _identity(state: os.stat_result) -> tuple[int, int, int, int]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _changed(file: str, fact: str) -> ChangedError:
    return ChangedError(
        f"{shown(file)}: the file changed while it was read: {fact}. Let the writer finish; scan again."
    )
