"""The metadata values of a GGUF file, and the reader that no length in it can lead astray.

Source of the layout: docs/gguf.md of ggml, versions 2 and 3. Everything is little endian. A length is compared with
what is left of the file, and of :data:`MAX_HEADER`, before anything is read or skipped by it, so no file can ask for
more memory or time than its header takes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

from gemma_doctor.checkpoint.broken import Broken
from gemma_doctor.checkpoint.quoting import quoted

__all__ = ["MAX_HEADER", "Content", "Cursor", "Value", "as_uint32", "read_value", "uint32_bytes"]

MAX_HEADER = 100_000_000
"""Most bytes before the first tensor: as for safetensors. A vocabulary of 262,144 tokens takes some ten million."""

_MAX_NUMBERS = 1 << 16
"""Most elements of an array that are kept: those with a number for each layer have some hundred."""

_MAX_TEXT = 1 << 16
"""Most bytes of a text that is kept: longer ones, which are chat templates, mean nothing to any rule."""

_SCALARS = {
    0: ("UINT8", "<B"),
    1: ("INT8", "<b"),
    2: ("UINT16", "<H"),
    3: ("INT16", "<h"),
    4: ("UINT32", "<I"),
    5: ("INT32", "<i"),
    6: ("FLOAT32", "<f"),
    7: ("BOOL", "<?"),
    10: ("UINT64", "<Q"),
    11: ("INT64", "<q"),
    12: ("FLOAT64", "<d"),
}
_STRING, _ARRAY = 8, 9

Content: TypeAlias = "int | float | bool | str | tuple[int | float | bool, ...] | None"


@dataclass(frozen=True, slots=True)
class Value:
    """One metadata value.

    Attributes:
        type: The format's own name of its type: ``"UINT32"``, ``"STRING"``, ``"ARRAY"`` …
        at: Offset of its type's four bytes in the file; a scalar's own bytes follow them.
        content: The value; None for one that is not kept: long texts, arrays of texts, arrays of more than 65,536.
    """

    type: str
    at: int
    content: Content


def as_uint32(value: Value) -> int | None:
    """The whole number that a scalar of four bytes holds; None if it is none, or out of UINT32's range."""
    number = value.content
    if value.type not in {"FLOAT32", "INT32", "UINT32"} or not isinstance(number, int | float):
        return None
    return int(number) if 0 <= number < 1 << 32 and number == int(number) else None


def uint32_bytes(number: int) -> bytes:
    """A UINT32 as it is stored: its type and its value, eight bytes from :attr:`Value.at` on."""
    return struct.pack("<II", 4, number)


class Cursor:
    """A place in the header, which moves on as values are read.

    Attributes:
        at: Its offset in the file.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        """Begins at the first byte.

        Args:
            stream: The file, at its beginning.
            size: Bytes of the whole file.
        """
        self.at = 0
        self._stream, self._size, self._data = stream, size, bytearray()

    def number(self, form: str) -> int | float | bool:
        """The number here, of a struct format."""
        start = self.skip(struct.calcsize(form))
        number: int | float | bool = struct.unpack_from(form, self._data, start)[0]
        return number

    def count(self, form: str = "<Q") -> int:
        """The unsigned integer here."""
        return int(self.number(form))

    def text(self, what: str) -> str:
        """The text here.

        Args:
            what: How messages call it.
        """
        length = self.count()
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise Broken(f"{what} at byte {self.at - length:,} is not UTF-8 (its byte {error.start:,})") from None

    def take(self, count: int) -> bytes:
        """The next bytes."""
        start = self.skip(count)
        return bytes(self._data[start : start + count])

    def numbers(self, form: str, count: int) -> tuple[int | float | bool, ...] | None:
        """The numbers here; None if they are too many to be kept."""
        start = self.skip(count * struct.calcsize(form))
        return struct.unpack_from(f"<{count}{form[1:]}", self._data, start) if count <= _MAX_NUMBERS else None

    def skip_texts(self, count: int) -> None:
        """Pass over texts, one after the other."""
        self.need(8 * count)  # what their lengths alone take
        data, length_at = self._data, struct.Struct("<Q").unpack_from
        for _ in range(count):  # millions in a vocabulary
            stop = self.at + 8
            if stop > len(data):
                self.need(8)
            stop += length_at(data, self.at)[0]
            if stop > len(data):
                self.need(stop - self.at)
            self.at = stop

    def skip(self, count: int) -> int:
        """Pass over bytes.

        Returns:
            The offset of the first.
        """
        self.need(count)
        start = self.at
        self.at += count
        return start

    def need(self, count: int) -> None:
        """Have at least so many bytes from here on in memory.

        Raises:
            Broken: If the file, or what a header may take, ends before them.
        """
        end = self.at + count
        if end <= len(self._data):
            return
        if end > self._size:
            raise Broken(f"its header needs {end:,} bytes or more, and the file has {self._size:,}: it is cut short")
        if end > MAX_HEADER:
            raise Broken(f"its header has {end:,} bytes or more; the limit is {MAX_HEADER:,}")
        wanted = min(self._size, MAX_HEADER, max(end, 2 * len(self._data), 1 << 16))
        self._data += self._stream.read(wanted - len(self._data))
        if len(self._data) < end:
            raise Broken(f"the file ended at byte {len(self._data):,} while it was read")


def read_value(cursor: Cursor, key: str) -> Value:
    """The metadata value that begins here with its type.

    Args:
        cursor: At the type.
        key: Its key, for messages.

    Raises:
        Broken: If its type is unknown, or it is an array of arrays, which llama.cpp refuses as well.
    """
    at = cursor.at
    kind = cursor.count("<I")
    if kind in _SCALARS:
        name, form = _SCALARS[kind]
        return Value(name, at, cursor.number(form))
    if kind == _STRING:
        return Value("STRING", at, _text(cursor, key))
    if kind == _ARRAY:
        return Value("ARRAY", at, _array(cursor, key))
    raise Broken(f"the value of {quoted(key)} has the unknown type {kind}")


def _text(cursor: Cursor, key: str) -> str | None:
    start = cursor.at
    length = cursor.count()
    if length > _MAX_TEXT:
        cursor.skip(length)
        return None
    cursor.at = start
    return cursor.text(f"the value of {quoted(key)}")


def _array(cursor: Cursor, key: str) -> tuple[int | float | bool, ...] | None:
    kind, count = cursor.count("<I"), cursor.count()
    if kind in _SCALARS:
        return cursor.numbers(_SCALARS[kind][1], count)
    if kind == _STRING:
        cursor.skip_texts(count)
        return None
    what = "arrays" if kind == _ARRAY else f"the unknown type {kind}"
    raise Broken(f"{quoted(key)} is an array of {what}")
