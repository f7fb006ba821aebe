"""What tells a checkpoint from a changed one: the headers of its files, and the tensors that a plan depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from gemma_doctor.checkpoint import Checkpoint, FileBytes
from gemma_doctor.plans import FileMark, Fingerprint

__all__ = ["fingerprint"]


def fingerprint(checkpoint: Checkpoint, files: FileBytes, tensors: Iterable[str]) -> Fingerprint:
    """The mark of every tensor file, and the hash of some tensors.

    Args:
        checkpoint: The checkpoint, all of its files readable.
        files: Its open bytes.
        tensors: Names on disk of the tensors to hash.

    Raises:
        ChangedError: If a file has not the size it had when it was opened.
        CheckpointError: If a file cannot be read.
    """
    return Fingerprint(
        files=tuple(
            FileMark(info.name, info.size, hashlib.sha256(files.header(info.name)).hexdigest())
            for info in checkpoint.files
        ),
        tensors={name: files.sha256(checkpoint.tensors[name]) for name in tensors},
    )
