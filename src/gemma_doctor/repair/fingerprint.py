"""What tells a checkpoint from a changed one: the headers of its files, its config, the tensors a plan depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from gemma_doctor.checkpoint import Checkpoint, FileBytes
from gemma_doctor.plans import FileMark, Fingerprint

__all__ = ["config_mark", "fingerprint"]


def fingerprint(checkpoint: Checkpoint, files: FileBytes, tensors: Iterable[str]) -> Fingerprint:
    """The mark of every tensor file and of the config, and the hash of some tensors.

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
        config=config_mark(checkpoint),
    )


def config_mark(checkpoint: Checkpoint) -> str | None:
    """SHA-256 of what the config says: which layers share KV and which norm adds one decide what a plan may do.

    Args:
        checkpoint: The checkpoint.

    Returns:
        The hash of its JSON with sorted keys and without blanks; None where there is no config.
    """
    if checkpoint.config is None:
        return None
    text = json.dumps(checkpoint.config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
