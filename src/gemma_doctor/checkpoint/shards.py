"""One tensor file: its header, or what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gemma_doctor.checkpoint.files import reading
from gemma_doctor.checkpoint.header import read_header
from gemma_doctor.checkpoint.quoting import quoted, shown
from gemma_doctor.errors import CheckpointError
from gemma_doctor.records import Fault, FileInfo
from gemma_doctor.tensors import TensorInfo

__all__ = ["Shard", "read_shard"]


@dataclass(frozen=True, slots=True)
class Shard:
    """One tensor file of a checkpoint.

    Attributes:
        info: The file; None where there is none.
        tensors: Its tensors by offset; empty where the header cannot be read.
        faults: What is wrong with it.
        readable: Whether its header could be read.
    """

    info: FileInfo | None
    tensors: tuple[TensorInfo, ...] = ()
    faults: tuple[Fault, ...] = ()
    readable: bool = False


def read_shard(root: Path, name: str) -> Shard:
    """Read the header of one file; what is wrong with it becomes a fault.

    Args:
        root: Folder of the checkpoint.
        name: The file, relative to it.
    """
    size = 0
    try:
        with reading(root / name, name) as (stream, size):
            header = read_header(stream, size, name)
    except FileNotFoundError:
        message = f"{shown(name)}: this file is missing. Download it, or the whole checkpoint again."
        return Shard(None, faults=(Fault("index-mismatch", name, message),))
    except CheckpointError as error:
        fault = Fault("unreadable-shard", name, str(error), evidence={"bytes": size})
        return Shard(FileInfo(name, size), faults=(fault,))
    info = FileInfo(name, size, header.metadata, len(header.tensors))
    return Shard(info, header.tensors, tuple(_repeated(name, tensor) for tensor in header.repeated), readable=True)


def _repeated(file: str, tensor: str) -> Fault:
    message = (
        f"{shown(file)}: its header lists tensor {quoted(tensor)} twice; readers take the last entry. "
        "Have the file written anew."
    )
    return Fault("index-mismatch", file, message, tensor)
