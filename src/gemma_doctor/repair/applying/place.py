"""Whether the output may go where the user wants it: judged before anything is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.errors import UsageError
from gemma_doctor.repair.applying.sidecars import is_single_file

__all__ = ["check_place", "check_room"]


def check_place(checkpoint: Checkpoint, output: Path, *, force: bool) -> None:
    """Refuse an output that is in the way of something.

    Args:
        checkpoint: The source.
        output: Where the output shall be, symbolic links resolved.
        force: Whether a folder that is there may be replaced.

    Raises:
        UsageError: If the output is, holds or lies in the source; if it is no folder, or holds files and may not be
            replaced; if it is a mount point, which no folder can be renamed to.
    """
    for path in _source_paths(checkpoint):
        if output == path:
            raise UsageError(f"{output}: this is the source, which is never touched. Give another --output.")
        if path in output.parents:
            raise UsageError(f"{output}: this lies inside the source, {path}. Give an --output outside it.")
        if output in path.parents:
            raise UsageError(f"{output}: the source, {path}, lies inside this. Give an --output beside it.")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: this is a file; the output is a folder. Give another --output.")
    if output.is_mount():
        raise UsageError(f"{output}: this is a mount point, which cannot be replaced. Give a new folder inside it.")
    if output.is_dir() and any(output.iterdir()) and not force:
        raise UsageError(f"{output}: this folder is not empty. Give a new one, or --force to replace it.")


def check_room(parent: Path, needed: int) -> None:
    """Refuse what does not fit on the disk.

    Args:
        parent: The folder that the output will lie in.
        needed: Bytes that will be written.

    Raises:
        UsageError: If fewer are free; says both figures.
    """
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise UsageError(
            f"{parent}: too little disk: the output needs {needed:,} bytes, and {free:,} are free. Free "
            f"{needed - free:,} bytes, or give an --output on another disk."
        )


def _source_paths(checkpoint: Checkpoint) -> list[Path]:
    """Where the source really lies: its folder or file, and what the links in it lead to."""
    files = [Path(os.path.realpath(checkpoint.root / info.name)) for info in checkpoint.files]
    return files if is_single_file(checkpoint) else [Path(os.path.realpath(checkpoint.root)), *files]
