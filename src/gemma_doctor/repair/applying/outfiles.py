"""The files of the output before they are written: what each is made of, piece by piece.

A piece knows where it lies and how to produce its bytes, at any time and from the source alone. So the check of the
output needs nothing from the writing: it produces every piece again and compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gemma_doctor.checkpoint import FileBytes
from gemma_doctor.checkpoint.dtypes import BITS
from gemma_doctor.checkpoint.writer import ShardLayout
from gemma_doctor.repair.applying.schedule import Target
from gemma_doctor.repair.elements.edits import carry_out, dtype_after
from gemma_doctor.repair.elements.floats import FORMS
from gemma_doctor.tensors import TensorInfo

__all__ = [
    "BLOCK_BYTES",
    "Bytes",
    "Copied",
    "Document",
    "OutFile",
    "Patched",
    "Piece",
    "Rewritten",
    "Span",
    "chunks",
    "origin_bytes",
    "pieces",
]

BLOCK_BYTES = 1 << 18
"""Bytes of one block. The blocks that wait to be checked then lie in the processor's cache together."""

Bytes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Copied:
    """A file of the source as it is.

    Attributes:
        name: Path relative to both roots.
        size: Bytes.
        holds_tensors: Whether it is a tensor file, which may be hard-linked, or a side file.
    """

    name: str
    size: int
    holds_tensors: bool


@dataclass(frozen=True, slots=True)
class Document:
    """A small file whose bytes are known: the index, ``config.json``."""

    name: str
    content: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A tensor file of which something changes.

    Attributes:
        name: Path relative to both roots.
        layout: Its header, and where each tensor will lie.
        targets: The tensors, in the order of the layout's.
    """

    name: str
    layout: ShardLayout
    targets: tuple[Target, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.layout.size


@dataclass(frozen=True, slots=True)
class Patched:
    """A GGUF file of which a few bytes change, and none moves.

    Attributes:
        name: Path relative to both roots.
        size: Bytes.
        patches: Offset and new bytes of each change, in order.
    """

    name: str
    size: int
    patches: tuple[tuple[int, bytes], ...]


OutFile: TypeAlias = Copied | Document | Patched | Rewritten


@dataclass(frozen=True, slots=True)
class _Plain:
    """Bytes that are known."""

    at: int
    content: bytes

    @property
    def nbytes(self) -> int:
        return len(self.content)

    def produce(self, _source: FileBytes) -> Bytes:
        return np.frombuffer(self.content, np.uint8)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of the source, from ``start`` on, as they are."""

    at: int
    file: str
    start: int
    nbytes: int

    def produce(self, source: FileBytes) -> Bytes:
        """The bytes, mapped."""
        return source.read(self.file, self.start, self.start + self.nbytes)


@dataclass(frozen=True, slots=True)
class _Derived:
    """Some elements of a tensor whose elements change."""

    at: int
    nbytes: int
    target: Target
    first: int
    stop: int

    def produce(self, source: FileBytes) -> Bytes:
        return _edited(source, self.target, self.first, self.stop)


Piece: TypeAlias = "_Plain | Span | _Derived"


def pieces(out: OutFile) -> Iterator[Piece]:
    """A file's pieces in the order in which they lie, none of them larger than a block."""
    match out:
        case Copied():
            yield from _spans(Span(0, out.name, 0, out.size))
        case Document():
            yield from _plain(out.content)
        case Patched():
            yield from _patched(out)
        case Rewritten():
            yield from _plain(out.layout.header)
            yield from _tensor_pieces(out)


def _tensor_pieces(out: Rewritten) -> Iterator[Piece]:
    """Runs of untouched tensors that lie together here and there are copied as one."""
    run: Span | None = None
    for info, target in sorted(zip(out.layout.tensors, out.targets, strict=True), key=lambda pair: pair[0].start):
        origin = None if target.changes else target.origin
        if origin is None:
            yield from _spans(run)
            run = None
            yield from _derived(info, target)
        elif run and (run.at + run.nbytes, run.start + run.nbytes) == (info.start, origin.start):
            run = Span(run.at, run.file, run.start, run.nbytes + info.nbytes)
        else:
            yield from _spans(run)
            run = Span(info.start, origin.file, origin.start, info.nbytes)
    yield from _spans(run)


def _patched(out: Patched) -> Iterator[Piece]:
    done = 0
    for at, content in (*out.patches, (out.size, b"")):
        yield from _spans(Span(done, out.name, done, at - done))
        if content:
            yield _Plain(at, content)
        done = at + len(content)


def _plain(content: bytes) -> Iterator[_Plain]:
    return (_Plain(at, content[at : at + BLOCK_BYTES]) for at in range(0, len(content), BLOCK_BYTES))


def _spans(run: Span | None) -> Iterator[Span]:
    if run is not None:
        for done in range(0, run.nbytes, BLOCK_BYTES):
            yield Span(run.at + done, run.file, run.start + done, min(BLOCK_BYTES, run.nbytes - done))


def _derived(info: TensorInfo, target: Target) -> Iterator[_Derived]:
    for first, stop in chunks(target):
        begin, end = (info.start + element * BITS[info.dtype] // 8 for element in (first, stop))
        yield _Derived(begin, end - begin, target, first, stop)


def chunks(target: Target) -> Iterator[tuple[int, int]]:
    """First element and one past the last of each chunk of a tensor, before and after the edits a block at most."""
    numel = target.entry.nbytes * 8 // BITS[target.entry.dtype]
    width = max(BITS[target.begins_as], BITS[target.entry.dtype])
    step = BLOCK_BYTES * 8 // width // 8 * 8  # whole bytes, whatever the width
    for first in range(0, numel, step):
        yield first, min(first + step, numel)


def origin_bytes(source: FileBytes, target: Target, first: int, stop: int) -> Bytes:
    """The bytes of a chunk before its tensor's first change; zeros for a tensor that is added.

    Args:
        source: The open source.
        target: The tensor.
        first: Index of the chunk's first element in the flattened tensor.
        stop: Index one past its last.
    """
    begin, end = (element * BITS[target.begins_as] // 8 for element in (first, stop))
    if target.origin is None:
        return np.zeros(end - begin, np.uint8)
    return source.read(target.origin.file, target.origin.start + begin, target.origin.start + end)


def _edited(source: FileBytes, target: Target, first: int, stop: int) -> Bytes:
    content, dtype = origin_bytes(source, target, first, stop), target.begins_as
    for change in target.changes:
        content = carry_out(change, content.view(FORMS[dtype].word), dtype).view(np.uint8)
        dtype = dtype_after(change, dtype)
    return content
