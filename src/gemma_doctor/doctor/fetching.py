"""Sources whose files must be on this machine: a repair copies them, a run loads them."""

from __future__ import annotations

import os
from collections.abc import Callable

from gemma_doctor.checkpoint import Checkpoint, is_repository, open_checkpoint
from gemma_doctor.errors import UsageError

__all__ = ["fetched"]


def fetched(
    source: str | os.PathLike[str], revision: str | None = None, agree: Callable[[str, str], None] | None = None
) -> Checkpoint:
    """A checkpoint whose files are on this machine, which a Hub repository's are after a download.

    Args:
        source: A file, a folder, or a Hub repository.
        revision: Branch, tag or commit of a Hub repository; its default branch if None.
        agree: Told a repository's name and its format before it is downloaded; raises where it is not wanted.

    Raises:
        UsageError: If they are not, and cannot be downloaded by us.
    """
    checkpoint = open_checkpoint(source, revision=revision, download=is_repository(source), agree=agree)
    if checkpoint.store is not None:
        raise UsageError(f"{checkpoint.uri}: only a scan reads it where it is. Download it, and give the path")
    return checkpoint
