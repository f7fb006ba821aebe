"""The header of a GGUF file, read as strictly as llama.cpp reads it, and with a bound on everything that it counts.

A file is the magic, a version, two counts, the metadata, an entry for each tensor, and the tensors' bytes, each tensor
from a multiple of ``general.alignment`` on. Refused, beside what cannot be read: what ``gguf_init_from_file`` of ggml
(ggml/src/gguf.cpp) refuses: a doubled key or tensor, rows that are no whole number of quantisation blocks, and tensors
that do not follow each other without gap or overlap. The sizes of the blocks are those of the gguf package.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

from gemma_doctor.checkpoint.broken import Broken, refusing
from gemma_doctor.checkpoint.disguise import HEAD
from gemma_doctor.checkpoint.gguf_values import Cursor, Value, read_value
from gemma_doctor.checkpoint.quoting import quoted
from gemma_doctor.tensors import TensorInfo

__all__ = ["GGUFHeader", "read_gguf_header"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 2**63 - 1
_ALIGNMENT = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_AGAIN = "Download the file again, or have it converted anew"


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What the header of one GGUF file says.

    Attributes:
        metadata: Its values by key, in the order of the file.
        tensors: The tensors in the order of the file, which is that of their bytes. Extents stand outermost first,
            the other way round than in the file; dtypes have the format's own names, such as ``"Q4_K"``.
        size: Bytes before the first tensor, padding included.
    """

    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    size: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor as the header lists it.

    Attributes:
        name: Its name.
        kind: Its type's name.
        shape: Extents, outermost first.
        nbytes: What it takes.
        offset: Where it begins, counted from the first tensor.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int


def read_gguf_header(stream: BinaryIO, size: int, file: str) -> GGUFHeader:
    """Read and check the header of a GGUF file; the tensors' bytes are not touched.

    Args:
        stream: The file, at its beginning; seekable.
        size: Bytes of the whole file.
        file: How messages and :class:`TensorInfo` name the file.

    Raises:
        HeaderError: If the file breaks the format, or is something else altogether.
    """
    head = stream.read(min(size, HEAD))
    stream.seek(0)
    with refusing(file, "GGUF", head, _AGAIN, magic=_MAGIC):
        return _parse(Cursor(stream, size), size, file)


def _parse(cursor: Cursor, size: int, file: str) -> GGUFHeader:
    if cursor.take(len(_MAGIC)) != _MAGIC:
        raise Broken("it does not begin with GGUF")
    _check_version(cursor.count("<I"))
    tensors = _bounded("tensors", cursor.count(), _MAX_TENSORS)
    keys = _bounded("metadata keys", cursor.count(), _MAX_KEYS)
    metadata = _metadata(cursor, keys)
    alignment = _alignment(metadata)
    entries = _entries(cursor, tensors)
    start = _padded(cursor.at, alignment)
    return GGUFHeader(metadata, tuple(_placed(entries, start, alignment, size, file)), start)


def _check_version(version: int) -> None:
    if version in _VERSIONS:
        return
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if swapped in _VERSIONS:
        raise Broken("it is written for machines of the other byte order (big endian)")
    raise Broken(f"its version is {version:,}; this gemma-doctor reads 2 and 3")


def _bounded(what: str, count: int, most: int) -> int:
    if count > most:
        raise Broken(f"its header counts {count:,} {what}; the limit is {most:,}")
    return count


def _metadata(cursor: Cursor, count: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for number in range(count):
        key = cursor.text(f"metadata key {number + 1:,}")
        if key in values:
            raise Broken(f"the metadata key {quoted(key)} stands twice")
        values[key] = read_value(cursor, key)
    return values


def _alignment(metadata: Mapping[str, Value]) -> int:
    value = metadata.get(_ALIGNMENT)
    if value is None:
        return _DEFAULT_ALIGNMENT
    number = value.content if value.type == "UINT32" else 0
    if not isinstance(number, int) or number <= 0 or number & (number - 1):
        raise Broken(f"{_ALIGNMENT} is {value.content!r} ({value.type}); it must be a power of two (UINT32)")
    return number


def _entries(cursor: Cursor, count: int) -> list[_Entry]:
    names: set[str] = set()
    entries = []
    for number in range(count):
        name = cursor.text(f"the name of tensor {number + 1:,}")
        if name in names:
            raise Broken(f"the tensor {quoted(name)} stands twice")
        names.add(name)
        entries.append(_entry(cursor, name))
    return entries


def _entry(cursor: Cursor, name: str) -> _Entry:
    dimensions = cursor.count("<I")
    if dimensions > _MAX_DIMENSIONS:
        raise Broken(f"tensor {quoted(name)} has {dimensions:,} dimensions; the limit is {_MAX_DIMENSIONS}")
    extents = [cursor.count() for _ in range(dimensions)]
    kind, block, nbytes = _type(name, cursor.count("<I"))
    elements = math.prod(extents)
    if elements > _MAX_ELEMENTS:
        raise Broken(f"tensor {quoted(name)} has {elements:,} elements; the limit is {_MAX_ELEMENTS:,}")
    if (extents or [1])[0] % block:
        raise Broken(f"tensor {quoted(name)}: rows of {(extents or [1])[0]:,} are no whole {kind} blocks of {block}")
    return _Entry(name, kind, tuple(reversed(extents)), elements // block * nbytes, cursor.count())


def _type(name: str, number: int) -> tuple[str, int, int]:
    """A type's name, and the elements and bytes of one of its blocks."""
    known = _types()
    if number not in known:
        raise Broken(f"tensor {quoted(name)} has the type {number:,}, unknown to the installed gguf package")
    return known[number]


@cache
def _types() -> Mapping[int, tuple[str, int, int]]:
    from gguf.constants import GGML_QUANT_SIZES  # noqa: PLC0415  # needed for GGUF only

    return {int(kind): (str(kind.name), *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


def _placed(entries: list[_Entry], start: int, alignment: int, size: int, file: str) -> Iterator[TensorInfo]:
    """The tensors, once they follow each other and end before the file does."""
    following = 0
    for entry in entries:
        if entry.offset != following:
            how = "overlaps the one before it" if entry.offset < following else "leaves a gap before it"
            raise Broken(
                f"tensor {quoted(entry.name)} {how}: among the tensors' bytes it begins at {entry.offset:,}, "
                f"not {following:,}"
            )
        begin = start + entry.offset
        stop = begin + entry.nbytes
        if stop > size and entry.nbytes:
            raise Broken(
                f"tensor {quoted(entry.name)} ends at byte {stop:,}, and the file has {size:,}: it is cut short"
            )
        yield TensorInfo(entry.name, entry.kind, entry.shape, file, begin, stop)
        following += _padded(entry.nbytes, alignment)


def _padded(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment
