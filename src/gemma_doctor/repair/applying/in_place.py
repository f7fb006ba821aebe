"""Changing a GGUF file itself: eight bytes of its metadata, after a backup of its header.

All or nothing, as far as a file that is changed in place can be: everything that can be refused is refused first; the
header is copied beside the file and put on the disk; then a value's type and its number, which lie together, are
written by one call and put on the disk. Where what is read back is not the old header with these bytes changed, the old
ones are written again, and so are they after Ctrl-C. The copy goes where it is of no use: the file is as it was.
"""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemma_doctor.checkpoint import Checkpoint, FileBytes, open_checkpoint
from gemma_doctor.checkpoint.gguf_values import uint32_bytes
from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.errors import ChangedError, DoctorError, OutputError, UsageError
from gemma_doctor.plans import Applied, Plan, SetMetadata, WrittenFile
from gemma_doctor.repair.applying.rehearsal import check_files
from gemma_doctor.repair.applying.schedule import schedule
from gemma_doctor.repair.applying.workspace import sync_folder

__all__ = ["BACKUP", "apply_in_place"]

BACKUP = ".header-backup"
"""What the name of the header's copy ends in."""

_NEXT = "Use --output instead, which leaves the file alone"


def apply_in_place(plan: Plan, checkpoint: Checkpoint) -> Applied:
    """Carry out a plan in the source itself.

    Args:
        plan: What is to be done: one edit of a GGUF file's metadata.
        checkpoint: The source, as the plan was made for it.

    Returns:
        What was written: the backup, and the eight bytes.

    Raises:
        UsageError: If the plan has other edits, other names lead to the file, or there is a backup already.
        ChangedError: If the source is not what the plan was made for; it is as it was.
        OutputError: If it cannot be written, or is read back as something else.
        KeyboardInterrupt: If Ctrl-C was pressed; the source is as it was.
    """
    started = time.perf_counter()
    edit = _only_edit(plan)
    schedule(plan.edits, checkpoint)
    path = checkpoint.root / edit.file
    backup = path.with_name(path.name + BACKUP)
    _check_names(path, backup)
    with FileBytes(checkpoint) as source:
        check_files(plan.fingerprint, checkpoint, source)
        header = source.header(edit.file)
    at, new = checkpoint.metadata[edit.key].at, uint32_bytes(edit.number)
    try:
        with _interrupts_held():
            _write_backup(backup, header)
            _change(path, header, at, new)
            _prove(checkpoint, edit, path, backup)
            done = Applied(
                output=Path(os.path.realpath(path)),
                files=(WrittenFile(backup.name, len(header), hashlib.sha256(header).hexdigest(), linked=False),),
                bytes_written=len(header) + len(new),
                bytes_linked=0,
                seconds=time.perf_counter() - started,
                removed_leftovers=(),
                remarks=(f"the old header is in {shown(str(backup))}; delete it when the file has proved itself",),
            )
    except ChangedError:
        backup.unlink()
        raise
    except KeyboardInterrupt:
        with _interrupts_held():
            _change_back(path, header, at, new)
            backup.unlink(missing_ok=True)
        raise
    except OSError as error:
        what = f"{shown(edit.file)}: it could not be written: {error.strerror or error}"
        raise OutputError(f"{what}. {_restoring(path, backup)}") from error
    return done


def _only_edit(plan: Plan) -> SetMetadata:
    edits = [edit for edit in plan.edits if isinstance(edit, SetMetadata)]
    if len(edits) != len(plan.edits) or len(edits) != 1:
        raise UsageError(f"--in-place changes one metadata value of a GGUF file and nothing else. {_NEXT}.")
    return edits[0]


def _check_names(path: Path, backup: Path) -> None:
    """Refuse a file that is not this name's alone, and a backup that is there."""
    state = path.lstat()
    if not stat.S_ISREG(state.st_mode):
        raise UsageError(f"{path}: this is a link, and --in-place would change the file that it leads to. {_NEXT}.")
    if state.st_nlink > 1:
        raise UsageError(f"{path}: {state.st_nlink - 1:,} other names lead to this file (hard links). {_NEXT}.")
    if os.path.lexists(backup):
        raise _backup_there(backup)


def _write_backup(backup: Path, header: bytes) -> None:
    """The header's copy, on the disk before anything is changed.

    Raises:
        UsageError: If there is one by now.
        OutputError: If it cannot be written; nothing of it is left.
    """
    try:
        with backup.open("xb") as stream, _removed_if_failed(backup):
            stream.write(header)
            stream.flush()
            os.fsync(stream.fileno())
            sync_folder(backup.parent)
    except FileExistsError:
        raise _backup_there(backup) from None
    except OSError as error:
        what = f"{backup}: the header's copy could not be written: {error.strerror or error}"
        raise OutputError(f"{what}. The file itself was not touched. Make room beside it. Or: {_NEXT}.") from error


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """While it lasts (milliseconds), Ctrl-C waits: between two steps here it would leave something behind."""
    if threading.current_thread() is not threading.main_thread():  # Python interrupts no other
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


@contextmanager
def _removed_if_failed(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink()
        raise


def _backup_there(backup: Path) -> UsageError:
    return UsageError(f"{backup}: there is a backup already. Move it away, or use --output instead.")


def _change(path: Path, header: bytes, at: int, new: bytes) -> None:
    """Write the bytes, and the old ones again if the file is then not what it should be.

    Raises:
        OSError: If it cannot be written.
        ChangedError: If the file had become another one.
        OutputError: If it is read back as something else.
    """
    with _writable(path) as descriptor:
        if os.pread(descriptor, len(header), 0) != header:
            raise ChangedError(f"{path}: its header has changed since it was read; it was not touched. Scan it again.")
        os.pwrite(descriptor, new, at)
        os.fsync(descriptor)
        if os.pread(descriptor, len(header), 0) != header[:at] + new + header[at + len(new) :]:
            os.pwrite(descriptor, header[at : at + len(new)], at)
            os.fsync(descriptor)
            raise OutputError(f"{path}: it is read back as something else; the old bytes are in place. Check the disk.")


def _change_back(path: Path, header: bytes, at: int, new: bytes) -> None:
    """Write the old bytes where the new ones are."""
    with _writable(path) as descriptor:
        if os.pread(descriptor, len(new), at) == new:
            os.pwrite(descriptor, header[at : at + len(new)], at)
            os.fsync(descriptor)


@contextmanager
def _writable(path: Path) -> Iterator[int]:
    """The file's descriptor; a link is none of ours."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _prove(before: Checkpoint, edit: SetMetadata, path: Path, backup: Path) -> None:
    """Open the file as anybody would: the same tensors, and the same metadata but for the one value."""
    try:
        after = open_checkpoint(before.uri)
    except DoctorError as error:
        raise OutputError(f"{path} cannot be opened any more: {error} {_restoring(path, backup)}") from error
    meant = {**_metadata_texts(before), edit.key: ("UINT32", repr(edit.number))}
    if after.tensors != before.tensors or _metadata_texts(after) != meant:
        raise OutputError(f"{path} is not what the plan makes it. {_restoring(path, backup)}")


def _metadata_texts(checkpoint: Checkpoint) -> dict[str, tuple[str, str]]:
    """Each value's type and its content as text, for a NaN is not equal to itself."""
    return {key: (value.type, repr(value.content)) for key, value in checkpoint.metadata.items()}


def _restoring(path: Path, backup: Path) -> str:
    return f"To have the old header back: dd if={backup} of={path} conv=notrunc."
