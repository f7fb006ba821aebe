"""The header of a safetensors file, read as strictly as safetensors 0.8.0 reads it.

A file is eight bytes of length (u64, little endian), that many bytes of JSON, and the tensors' bytes::

    {"__metadata__": {"format": "pt"}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}

What is accepted and refused here is exactly what ``SafeTensors::read_metadata`` (safetensors/src/tensor.rs)
accepts and refuses, its habits included: a tensor may be written as an array ``["F32", [2, 3], [0, 24]]``, a
dtype as ``{"F32": null}``; unknown fields are ignored; of a name that stands twice the last one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import BinaryIO, NoReturn

from gemma_doctor.checkpoint.broken import Broken, refusing
from gemma_doctor.checkpoint.disguise import HEAD
from gemma_doctor.checkpoint.dtypes import BITS
from gemma_doctor.checkpoint.quoting import quoted
from gemma_doctor.checkpoint.strict_json import MAX_DEPTH, U64_MAX, BadJSONError, deeper_than, members
from gemma_doctor.tensors import TensorInfo

__all__ = ["MAX_HEADER", "Header", "read_header"]

MAX_HEADER = 100_000_000
"""Most bytes of JSON (``MAX_HEADER_SIZE`` of safetensors)."""

_LENGTH = 8
_FIELDS = ("dtype", "shape", "data_offsets")
_AGAIN = "Download the file again, or have it written anew by safetensors"


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of one file says.

    Attributes:
        metadata: ``__metadata__``; None where there is none.
        tensors: The tensors by offset; those without bytes stand where they claim to lie.
        repeated: Names that stand more than once (the last entry counts).
    """

    metadata: Mapping[str, str] | None
    tensors: tuple[TensorInfo, ...]
    repeated: tuple[str, ...] = ()


def read_header(stream: BinaryIO, size: int, file: str) -> Header:
    """Read and check the header of a safetensors file; the tensors' bytes are not touched.

    Args:
        stream: The file, at its beginning; seekable.
        size: Bytes of the whole file.
        file: How messages and :class:`TensorInfo` name the file.

    Raises:
        HeaderError: If the file breaks the format, or is something else altogether.
    """
    head = stream.read(min(size, HEAD))
    with refusing(file, "safetensors", head, _AGAIN):
        length = _header_length(head, size)
        stream.seek(_LENGTH)
        return _parse(stream.read(length), length, size, file)


def _header_length(head: bytes, size: int) -> int:
    if size < _LENGTH:
        raise Broken(f"it has only {size:,} bytes; the length of its header alone takes {_LENGTH}")
    length = int.from_bytes(head[:_LENGTH], "little")
    if length > MAX_HEADER:
        raise Broken(f"it announces a header of {length:,} bytes; the limit is {MAX_HEADER:,}")
    if _LENGTH + length > size:
        raise Broken(f"it is cut off: it has {size:,} bytes, and its header alone reaches to {_LENGTH + length:,}")
    return length


def _parse(raw: bytes, length: int, size: int, file: str) -> Header:
    if len(raw) != length:
        raise Broken(f"it was cut off while it was read: {len(raw):,} of the header's {length:,} bytes came")
    try:
        return _header(raw, _LENGTH + length, size, file)
    except BadJSONError as error:
        raise Broken(f"its header is not valid JSON: {error}") from None


def _header(raw: bytes, base: int, size: int, file: str) -> Header:
    metadata: list[dict[str, str] | None] = []
    tensors: dict[str, TensorInfo] = {}
    repeated: dict[str, None] = {}
    for name, value in members(raw):
        if name == "__metadata__":
            metadata.append(_metadata(value))
            continue
        if name in tensors:
            repeated[name] = None
        tensors[name] = _tensor(name, value, base, file)
    if len(metadata) > 1:
        raise Broken("its header has two __metadata__ entries")
    ordered = tuple(sorted(tensors.values(), key=attrgetter("start", "stop")))
    _check_layout(ordered, base, size)
    return Header(metadata[0] if metadata else None, ordered, tuple(repeated))


def _metadata(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, tuple):
        raise Broken("the __metadata__ of its header is not an object")
    for key, text in value:
        if not isinstance(text, str):
            raise Broken(f"the __metadata__ of its header maps {quoted(key)} to something other than a string")
    return dict(value)


def _tensor(name: str, value: object, base: int, file: str) -> TensorInfo:
    """The entry of one tensor: every value of the right type, nothing compared yet."""
    if isinstance(value, tuple):
        dtype, shape, offsets = _fields(name, value)
    elif isinstance(value, list) and len(value) == len(_FIELDS):
        dtype, shape, offsets = value
    else:
        _refuse(name, "is not an object with dtype, shape and data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:  # noqa: PLR2004
        _refuse(name, "has a shape that is not a list, or data_offsets that are not a list of two")
    for number in (*shape, *offsets):
        if type(number) is not int or number < 0:
            _refuse(name, "has a shape or data_offsets with an entry that is no integer from 0 to 2**64 - 1")
    return TensorInfo(name, _dtype(name, dtype), tuple(shape), file, base + offsets[0], base + offsets[1])


def _fields(name: str, pairs: tuple[tuple[str, object], ...]) -> tuple[object, object, object]:
    found = dict(pairs)
    if not len(pairs) == len(found) == len(_FIELDS):
        _check_fields(name, pairs)
    try:
        return found["dtype"], found["shape"], found["data_offsets"]
    except KeyError as missing:
        _refuse(name, f"has no {missing.args[0]}")


def _check_fields(name: str, pairs: tuple[tuple[str, object], ...]) -> None:
    """Known fields may not be repeated; others are ignored, but not at any depth."""
    keys = [key for key, _ in pairs]
    for key in _FIELDS:
        if keys.count(key) > 1:
            _refuse(name, f"has {key} twice")
    if deeper_than(MAX_DEPTH - 1, pairs):  # the header itself is one level
        raise BadJSONError(f"nested deeper than {MAX_DEPTH} levels")


def _dtype(name: str, value: object) -> str:
    if isinstance(value, tuple) and len(value) == 1 and value[0][1] is None:
        value = value[0][0]  # serde's other spelling of an enum's member: {"F32": null}
    if not isinstance(value, str):
        _refuse(name, "has a dtype that is not a string")
    if value not in BITS:
        _refuse(name, f"has the dtype {quoted(value)}, unknown to safetensors 0.8")
    return value


def _check_layout(tensors: tuple[TensorInfo, ...], base: int, size: int) -> None:
    """The tensors must fill the file from ``base`` to ``size``, in order, without hole and overlap."""
    at = base
    for tensor in tensors:
        if tensor.start != at or tensor.stop < tensor.start:
            _refuse(tensor.name, _misplaced(tensor.start - base, tensor.stop - base, at - base))
        nbytes = _nbytes(tensor)
        if tensor.nbytes != nbytes:
            shape = _brief(tensor.shape)
            _refuse(tensor.name, f"has {tensor.nbytes:,} bytes, where {tensor.dtype} of shape {shape} needs {nbytes:,}")
        at = tensor.stop
    if at > size:
        raise Broken(f"it is cut off: it has {size:,} bytes, and its header describes {at:,}")
    if at < size:
        raise Broken(f"it has {size:,} bytes, and its header describes only the first {at:,}")


def _misplaced(start: int, stop: int, at: int) -> str:
    if stop < start:
        return f"ends at {stop:,}, before it begins at {start:,}"
    if start < at:
        return f"begins at {start:,}, inside the tensor before it, which ends at {at:,}"
    return f"begins at {start:,}, and the {start - at:,} bytes before it belong to no tensor"


def _brief(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape[:8]))}{', …' if len(shape) > 8 else ''}]"  # noqa: PLR2004


def _nbytes(tensor: TensorInfo) -> int:
    """Bytes that dtype and shape ask for; overflows are found in the order in which the official parser multiplies."""
    count = 1
    for extent in tensor.shape:
        count *= extent
        if count > U64_MAX:
            _refuse(tensor.name, "has a shape with more than 2**64 - 1 elements")
    bits = count * BITS[tensor.dtype]
    if bits > U64_MAX:
        _refuse(tensor.name, "has more than 2**64 - 1 bits")
    if bits % 8:
        width = BITS[tensor.dtype]
        _refuse(tensor.name, f"has {count:,} elements of {width} bits, which do not end at a whole byte")
    return bits // 8


def _refuse(name: str, fact: str) -> NoReturn:
    raise Broken(f"in its header, tensor {quoted(name)} {fact}")
