"""Where the output grows until it is complete: a hidden folder beside it, locked while its maker lives.

The folder is called ``.NAME.gemma-doctor-PID-RANDOM.partial``. Its maker holds a lock (flock) on the folder itself,
which the system drops when the process ends, however it ends. So whoever gets the lock knows the folder for a dead
run's leftover. Publishing is one rename; where an older output is replaced, one exchange of two names
(renameat2(2), RENAME_EXCHANGE; renamex_np(2) on macOS), or, where the file system cannot, two renames, of which
the next run undoes the first if the second never came.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gemma_doctor.errors import OutputError
from gemma_doctor.plans import Leftover

__all__ = ["Workspace", "clear_leftovers", "sync_folder", "workspace"]

_NAME = re.compile(r"\.(?P<output>.+)\.gemma-doctor-[0-9]+-[0-9a-f]{8}\.(?P<state>partial|replaced)", re.DOTALL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>
_RENAME_SWAP = 2  # <sys/stdio.h> of macOS
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder that becomes the output.

    Attributes:
        folder: It.
        output: What it will be called.
    """

    folder: Path
    output: Path

    def publish(self, *, replace: bool) -> None:
        """Give the folder its name; then it is on the disk.

        Args:
            replace: Whether a folder that has the name and is not empty gives it up.

        Raises:
            OSError: If it cannot be renamed; then everything is as before.
            OutputError: If the disk does not take note of the name; the folder has it by then.
        """
        if replace and _holds_something(self.output):
            if not _exchange(self.folder, self.output):
                self._replace()
        else:
            self.folder.rename(self.output)
        try:
            sync_folder(self.output.parent)
        except OSError as error:
            what = f"{self.output}: it is complete and in its place, but the disk has not confirmed it"
            raise OutputError(f"{what}: {error.strerror or error}. Check the disk before you rely on it.") from error

    def _replace(self) -> None:
        """Two renames where names cannot be exchanged; a lock keeps other runs from mending the moment between."""
        aside = self.folder.with_suffix(".replaced")
        with _locked(self.output):
            self.output.rename(aside)
            try:
                self.folder.rename(self.output)
            except BaseException:
                aside.rename(self.output)
                raise
            aside.rename(self.folder)


@contextmanager
def workspace(output: Path) -> Iterator[Workspace]:
    """A new folder beside the output; whatever is left of it at the end goes.

    Args:
        output: What it will be called; its parent is there.

    Raises:
        OSError: If the folder cannot be made.
    """
    folder, lock = _make(output)
    try:
        yield Workspace(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # once it is published: the old output, or nothing
        os.close(lock)


def clear_leftovers(parent: Path) -> tuple[Leftover, ...]:
    """Delete what killed runs have left in a folder; what a living run works on stays.

    Args:
        parent: The folder.
    """
    return tuple(leftover for path in sorted(parent.iterdir()) if (leftover := _clear(path)))


def sync_folder(folder: Path) -> None:
    """Have a folder's entries put on the disk, so that they outlive a power cut."""
    descriptor = os.open(folder, _FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make(output: Path) -> tuple[Path, int]:
    """The folder and its lock; another name if a clearing run was quicker to lock it."""
    while True:
        folder = output.with_name(f".{output.name}.gemma-doctor-{os.getpid()}-{secrets.token_hex(4)}.partial")
        folder.mkdir()
        with suppress(FileNotFoundError):
            lock = os.open(folder, _FOLDER)
            if _lock(lock) and folder.is_dir():
                return folder, lock
            os.close(lock)


def _lock(descriptor: int) -> bool:
    """Whether the lock is ours; a file system without locks leaves everyone without, and nothing is cleared there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EBADF)
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, _FOLDER)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> Leftover | None:
    name = _NAME.fullmatch(path.name)
    if name is None:
        return None
    try:
        descriptor = os.open(path, _FOLDER)
    except OSError:  # gone, no folder, or somebody else's
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _clear_dead(path, path.with_name(name["output"]), replaced=name["state"] == "replaced")
    except OSError:  # its maker lives, or nobody can tell
        return None
    finally:
        os.close(descriptor)


def _clear_dead(path: Path, output: Path, *, replaced: bool) -> Leftover:
    nbytes = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
    if replaced and not output.exists():
        path.rename(output)
        return Leftover(path.name, nbytes, restored=output.name)
    shutil.rmtree(path)
    return Leftover(path.name, nbytes)


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    a, b = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        return hasattr(libc, "renamex_np") and libc.renamex_np(a, b, _RENAME_SWAP) == 0
    return hasattr(libc, "renameat2") and libc.renameat2(_AT_FDCWD, a, _AT_FDCWD, b, _RENAME_EXCHANGE) == 0
