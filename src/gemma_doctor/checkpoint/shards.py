"""One tensor file, safetensors or GGUF: its header, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from gemma_doctor.checkpoint.gguf_header import read_gguf_header
from gemma_doctor.checkpoint.gguf_values import Value
from gemma_doctor.checkpoint.header import read_header
from gemma_doctor.checkpoint.quoting import quoted, shown
from gemma_doctor.checkpoint.stores import Store
from gemma_doctor.checkpoint.waiting import Waiters
from gemma_doctor.errors import ChangedError, CheckpointError, TransferError
from gemma_doctor.records import Fault, FileInfo
from gemma_doctor.tensors import TensorInfo

__all__ = ["Shard", "read_shard", "read_shards"]


@dataclass(frozen=True, slots=True)
class Shard:
    """One tensor file of a checkpoint.

    Attributes:
        info: The file; None where there is none.
        tensors: Its tensors by offset; empty where the header cannot be read.
        faults: What is wrong with it.
        readable: Whether its header could be read.
        metadata: The metadata of a GGUF file by key; empty for safetensors.
    """

    info: FileInfo | None
    tensors: tuple[TensorInfo, ...] = ()
    faults: tuple[Fault, ...] = ()
    readable: bool = False
    metadata: Mapping[str, Value] = field(default_factory=dict)


def read_shards(store: Store, names: Iterable[str]) -> list[Shard]:
    """Read the headers of several files, as many at once as is good for where they are.

    Args:
        store: Where the checkpoint is.
        names: The files, relative to it.

    Raises:
        TransferError: If the store does not answer, or not as it should.
    """
    if store.streams == 1:
        return [read_shard(store, name) for name in names]
    with Waiters(store.streams, "headers") as pool:
        return list(pool.map(lambda name: read_shard(store, name), names))


def read_shard(store: Store, name: str) -> Shard:
    """Read the header of one file; what is wrong with it becomes a fault.

    Args:
        store: Where the checkpoint is.
        name: The file, relative to it.
    """
    size = 0
    try:
        with store.reading(name) as (stream, size):
            return _read(stream, size, name)
    except FileNotFoundError:
        message = f"{shown(name)}: this file is missing. Download it, or the whole checkpoint again."
        return Shard(None, faults=(Fault("index-mismatch", name, message),))
    except (ChangedError, TransferError):
        raise  # it says nothing about the format
    except CheckpointError as error:
        fault = Fault("unreadable-shard", name, str(error), evidence={"bytes": size})
        return Shard(FileInfo(name, size), faults=(fault,))


def _read(stream: BinaryIO, size: int, name: str) -> Shard:
    if name.endswith(".gguf"):
        gguf = read_gguf_header(stream, size, name)
        info = FileInfo(name, size, None, len(gguf.tensors), gguf.size)
        return Shard(info, gguf.tensors, readable=True, metadata=gguf.metadata)
    header = read_header(stream, size, name)
    info = FileInfo(name, size, header.metadata, len(header.tensors))
    return Shard(info, header.tensors, tuple(_repeated(name, tensor) for tensor in header.repeated), readable=True)


def _repeated(file: str, tensor: str) -> Fault:
    message = (
        f"{shown(file)}: its header lists tensor {quoted(tensor)} twice; readers take the last entry. "
        "Have the file written anew."
    )
    return Fault("index-mismatch", file, message, tensor)
