"""The noun ``Checkpoint``: what the files of a model hold, before any number is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_doctor.checkpoint.gguf_values import Value
from gemma_doctor.records import Fault, FileInfo
from gemma_doctor.tensors import TensorInfo

__all__ = ["Checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: headers read, data untouched.

    Attributes:
        uri: SOURCE as the user gave it.
        root: Folder that every file name is relative to.
        format: ``"safetensors"`` or ``"gguf"``.
        files: The tensor files, readable or not, in reading order.
        tensors: Every readable tensor by name, in model order (file order; within a file, header offset order).
        unreachable: Tensors that the index promises and no readable file holds: name -> reason.
        config: Parsed ``config.json``; None where there is none, and for GGUF.
        index: Name of the index file; None where there is none.
        faults: What is wrong with the files.
        partial: Whether SOURCE is one shard of several, so that absent tensors mean nothing.
        metadata: The metadata of a GGUF file (the first, of several) by key; empty for safetensors.
    """

    uri: str
    root: Path
    format: str
    files: tuple[FileInfo, ...]
    tensors: Mapping[str, TensorInfo]
    unreachable: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    index: str | None = None
    faults: tuple[Fault, ...] = ()
    partial: bool = False
    metadata: Mapping[str, Value] = field(default_factory=dict)
