"""Writing a safetensors file piece by piece: what its header says and where each tensor then lies, and copying.

The header is what safetensors 0.8.0 writes (``prepare`` in safetensors/src/tensor.rs): ``__metadata__`` first, the
tensors by offset, compact JSON, spaces up to a multiple of eight bytes.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gemma_doctor.checkpoint.dtypes import BITS
from gemma_doctor.checkpoint.header import MAX_HEADER
from gemma_doctor.checkpoint.quoting import quoted, shown
from gemma_doctor.errors import UsageError
from gemma_doctor.tensors import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Entry", "ShardLayout", "copy_range", "lay_out", "start_writeback", "write_all"]

_LIBC = ctypes.CDLL(None)
_ALIGNMENT = 8
_WRITEBACK = 2  # SYNC_FILE_RANGE_WRITE of <fcntl.h>
_NO_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
"""Why copy_file_range may not work here although reading and writing do (copy_file_range(2))."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor that is to be written.

    Attributes:
        name: Its name.
        dtype: The format's own name of the dtype.
        shape: Extents, outermost first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes.

        Raises:
            UsageError: If its elements do not end at a whole byte.
        """
        bits = math.prod(self.shape) * BITS[self.dtype]
        if bits % 8:
            raise UsageError(f"tensor {quoted(self.name)}: {self.dtype} of shape {list(self.shape)} ends inside a byte")
        return bits // 8


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """A file before it is written.

    Attributes:
        header: Its first bytes: length word, JSON and padding.
        tensors: Where each tensor will lie, in the order of the entries that were given.
        size: Bytes of the whole file.
    """

    header: bytes
    tensors: tuple[TensorInfo, ...]
    size: int


def lay_out(file: str, entries: Sequence[Entry], metadata: Mapping[str, str] | None) -> ShardLayout:
    """Decide where each tensor of a file lies.

    They lie in the order given. Where that would start one at an offset that is no multiple of its element's size,
    the larger elements come first, as the official writer has them; within one size the order stays.

    Args:
        file: The file's name, relative to the checkpoint's root.
        entries: Its tensors.
        metadata: Its ``__metadata__``; None for none.

    Raises:
        UsageError: If the header would be longer than readers accept.
    """
    ordered = sorted(entries, key=lambda entry: -BITS[entry.dtype]) if _misaligned(entries) else entries
    fields: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    placed: dict[str, TensorInfo] = {}
    at = 0
    for entry in ordered:
        stop = at + entry.nbytes
        fields[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (at, stop)}
        placed[entry.name] = TensorInfo(entry.name, entry.dtype, entry.shape, file, at, stop)
        at = stop
    header = _framed(file, json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode())
    shift = len(header)
    tensors = (placed[entry.name] for entry in entries)
    shifted = tuple(replace(info, start=info.start + shift, stop=info.stop + shift) for info in tensors)
    return ShardLayout(header, shifted, shift + at)


def _misaligned(entries: Sequence[Entry]) -> bool:
    at = 0
    for entry in entries:
        if at * 8 % BITS[entry.dtype]:
            return True
        at += entry.nbytes
    return False


def _framed(file: str, text: bytes) -> bytes:
    padded = text + b" " * (-len(text) % _ALIGNMENT)
    if len(padded) > MAX_HEADER:
        raise UsageError(
            f"{shown(file)}: its header would have {len(padded):,} bytes; readers accept {MAX_HEADER:,}. "
            "Split the file into shards first."
        )
    return len(padded).to_bytes(8, "little") + padded


def copy_range(source: int, start: int, target: int, at: int, content: npt.NDArray[np.uint8]) -> None:
    """Copy a range from file to file inside the kernel where it can (some file systems then share the blocks).

    Args:
        source: Descriptor of the file to read.
        start: Offset of the first byte there.
        target: Descriptor of the file to write.
        at: Offset of its first byte there.
        content: The same bytes, mapped: what is written where the kernel cannot copy. Shape (count,).

    Raises:
        OSError: If it cannot be written.
    """
    done = 0
    while done < content.size:
        copied = _kernel_copy(source, start + done, target, at + done, content.size - done)
        if not copied:
            write_all(target, at + done, content[done:])
            return
        done += copied


def _kernel_copy(source: int, start: int, target: int, at: int, count: int) -> int:
    """Bytes copied; 0 where the kernel or the file system cannot."""
    if not hasattr(os, "copy_file_range"):  # macOS
        return 0
    try:
        return os.copy_file_range(source, target, count, start, at)
    except OSError as error:
        if error.errno in _NO_COPY:
            return 0
        raise


def write_all(target: int, at: int, content: npt.NDArray[np.uint8]) -> None:
    """Write every byte.

    Args:
        target: Descriptor of the file.
        at: Offset of the first byte.
        content: The bytes, contiguous, shape (count,).

    Raises:
        OSError: If it cannot be written.
    """
    view = content.data
    done = 0
    while done < len(view):
        done += os.pwrite(target, view[done:], at + done)


def start_writeback(target: int, at: int, count: int) -> None:
    """Have the disk begin with a range that was just written, where the system can: fsync then has less to wait for.

    Args:
        target: Descriptor of the file.
        at: Offset of the first byte.
        count: Bytes.
    """
    if hasattr(_LIBC, "sync_file_range"):  # Linux
        # It only helps: whether the bytes have reached the disk is for fsync to say.
        _LIBC.sync_file_range(target, ctypes.c_int64(at), ctypes.c_int64(count), _WRITEBACK)
