"""A remote file as a stream, for the headers and documents that are parsed from one."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO, cast

from gemma_doctor.checkpoint.stores import Source

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["stream"]

_BUFFER = 1 << 20


def stream(source: Source, name: str, size: int) -> BinaryIO:
    """A remote file as a stream.

    The header of a GGUF file is read in many small pieces, and says only at its end how long it is: it is fetched
    a MiB at a time. Of every other file exactly what is read is fetched.

    Args:
        source: The file.
        name: Its name.
        size: Its bytes.
    """
    raw = RangeStream(source, size)
    return io.BufferedReader(raw, _BUFFER) if name.endswith(".gguf") else cast("BinaryIO", raw)


class RangeStream(io.RawIOBase):
    """The bytes of a remote file, each fetched once at most, as long as they are read from the beginning."""

    def __init__(self, source: Source, size: int) -> None:
        """Nothing is fetched yet.

        Args:
            source: The file.
            size: Its bytes.
        """
        self._source = source
        self._size = size
        self._known = b""
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to an offset from the beginning."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only from the beginning")
        self._at = offset
        return offset

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fills a buffer as far as the file goes."""
        view = memoryview(buffer)
        stop = min(self._at + len(view), self._size)
        if stop > len(self._known):
            more = bytearray(stop - len(self._known))
            self._source.read_into(len(self._known), memoryview(more))
            self._known += more
        count = max(0, stop - self._at)
        view[:count] = self._known[self._at : stop]
        self._at += count
        return count
