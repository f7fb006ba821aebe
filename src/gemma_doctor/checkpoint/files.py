"""Opening a file that a stranger has named: only regular files, and never a wait."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.errors import CheckpointError

__all__ = ["open_regular", "reading"]

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def open_regular(path: Path, name: str) -> tuple[int, os.stat_result]:
    """Open a regular file for reading.

    Args:
        path: The file; symbolic links are followed (the Hub's cache is made of them).
        name: How messages call it.

    Returns:
        The descriptor, which child processes do not inherit and the caller closes, and the file's state.

    Raises:
        FileNotFoundError: If nothing has this name, not even a dangling link.
        CheckpointError: If it cannot be opened, or is no regular file.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer. It changes nothing for regular files.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            raise
        raise CheckpointError(_why(path, name, error)) from None
    state = os.fstat(descriptor)
    if stat.S_ISREG(state.st_mode):
        return descriptor, state
    os.close(descriptor)
    kind = next((what for is_kind, what in _KINDS if is_kind(state.st_mode)), "something else")
    raise CheckpointError(f"{shown(name)}: it is {kind}, not a file. Put the file itself in its place.")


@contextmanager
def reading(path: Path, name: str) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file as a stream, and its size in bytes.

    Raises:
        FileNotFoundError: If nothing has this name.
        CheckpointError: If it cannot be opened or read, or is no regular file.
    """
    descriptor, state = open_regular(path, name)
    with os.fdopen(descriptor, "rb") as stream:
        try:
            yield stream, state.st_size
        except OSError as error:
            raise CheckpointError(_why(path, name, error)) from None


def _why(path: Path, name: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"{shown(name)}: a symbolic link to a file that does not exist. Finish the download, or mend the link."
    if isinstance(error, PermissionError):
        return f"{shown(name)}: no permission to read it. Change its mode, or run as a user who may."
    return f"{shown(name)}: it cannot be read: {error.strerror or error}. Check the disk and the path."
