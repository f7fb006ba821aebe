"""The noun ``Checkpoint``: what the files of a model hold, before any number is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_doctor.checkpoint.gguf_values import Value
from gemma_doctor.checkpoint.hub_names import hub_name
from gemma_doctor.checkpoint.stores import RemoteStore
from gemma_doctor.records import Fault, FileInfo
from gemma_doctor.tensors import TensorInfo

__all__ = ["Checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: headers read, data untouched.

    Attributes:
        uri: SOURCE as the user gave it.
        root: Folder that every file name is relative to; it need not exist where ``store`` is set.
        format: ``"safetensors"`` or ``"gguf"``.
        files: The tensor files, readable or not, in reading order.
        tensors: Every readable tensor by name, in model order (file order; within a file, header offset order).
        unreachable: Tensors that the index promises and no readable file holds: name -> reason.
        config: Parsed ``config.json``; None where there is none, and for GGUF.
        index: Name of the index file; None where there is none.
        faults: What is wrong with the files.
        partial: Whether SOURCE is one shard of several, so that absent tensors mean nothing.
        metadata: The metadata of a GGUF file (the first, of several) by key; empty for safetensors.
        revision: The commit of a Hub repository that was read; None for what has no revisions.
        store: Where the files are, if not in ``root``.
        beside: Weights in the folder that are no part of this checkpoint, and so not read: files, and with a ``/``
            behind their names folders that hold some. Empty where SOURCE names a file.
        remarks: What else the user should know of where it comes from, a sentence each.
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
    revision: str | None = None
    store: RemoteStore | None = None
    beside: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def pinned(self) -> str:
        """SOURCE such that it names the same bytes tomorrow: with the commit, where there is one."""
        name = None if self.revision is None else hub_name(self.uri)
        return self.uri if name is None else str(name.at(self.revision))
