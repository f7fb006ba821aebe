"""From a plan to a new folder: the source is read only, and the output is there when it is complete, or not at all.

Everything that can be refused is refused first. Then the files are written into a hidden folder beside the output,
read back and compared with the source and the plan, and the folder gets its name. The same source and plan make the
same bytes, ``gemma-doctor.json`` included: it holds no time and no path but the plan's own.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemma_doctor.checkpoint import Checkpoint, FileBytes
from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.cores import cores
from gemma_doctor.errors import OutputError
from gemma_doctor.plans import Applied, Plan, WrittenFile
from gemma_doctor.records import Progress
from gemma_doctor.repair.applying.crew import Crew
from gemma_doctor.repair.applying.manifest import manifest
from gemma_doctor.repair.applying.outfiles import Copied, OutFile
from gemma_doctor.repair.applying.outline import check_whole, outline
from gemma_doctor.repair.applying.place import check_place, check_room
from gemma_doctor.repair.applying.proof import prove
from gemma_doctor.repair.applying.rehearsal import check_files, rehearse
from gemma_doctor.repair.applying.sidecars import MANIFEST
from gemma_doctor.repair.applying.workspace import clear_leftovers, sync_folder, workspace

__all__ = ["apply"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def apply(  # noqa: PLR0913  # two nouns and a place; the rest has defaults and is named
    plan: Plan,
    checkpoint: Checkpoint,
    output: Path,
    *,
    link: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Applied:
    """Carry out a plan.

    Args:
        plan: What is to be done.
        checkpoint: The source, as the plan was made for it.
        output: Folder for the result; made, or replaced as a whole with ``force``.
        link: Hard-link untouched tensor files instead of copying them. They then are the same files: what is
            written to one later is written to both.
        force: Replace an output that is not empty, in one step, once the new one is complete.
        progress: Who is told how many bytes of the output are done.

    Returns:
        What was written.

    Raises:
        UsageError: If the plan does not fit the source, or the output its place.
        ChangedError: If the source is not what the plan was made for, or changes meanwhile.
        CheckpointError: If the source is incomplete or cannot be read.
        OutputError: If the output cannot be written, or is read back as something else. Nothing of it is left.
    """
    started = time.perf_counter()
    output = Path(os.path.realpath(output))
    check_whole(checkpoint)
    check_place(checkpoint, output, force=force)
    with FileBytes(checkpoint) as source, _explaining(output, source):
        check_files(plan.fingerprint, checkpoint, source)
        sketch = outline(plan, checkpoint, source)
        rehearse(plan.fingerprint, checkpoint, sketch.targets, source, cores())
        output.parent.mkdir(parents=True, exist_ok=True)
        leftovers = clear_leftovers(output.parent)
        linkable = link and _same_disk(checkpoint, output.parent)
        check_room(output.parent, _room(plan, sketch.files, link=linkable))
        with workspace(output) as work:
            for folder in sketch.folders:
                (work.folder / folder).mkdir()
            files = Crew(checkpoint, source, work.folder, linkable, cores()).write(sketch.files, progress)
            record = manifest(plan, files)
            _sync(work.folder, record)
            source.check()
            prove(sketch, checkpoint, work.folder)
            check_place(checkpoint, output, force=force)  # somebody may have filled it meanwhile
            work.publish(replace=force)
    return Applied(
        output=output,
        files=files,
        bytes_written=sum(file.size for file in files if not file.linked) + len(record),
        bytes_linked=sum(file.size for file in files if file.linked),
        seconds=time.perf_counter() - started,
        removed_leftovers=leftovers,
        remarks=(*sketch.remarks, *(_unlinked(sketch.files, files) if link else ())),
    )


def _room(plan: Plan, files: tuple[OutFile, ...], *, link: bool) -> int:
    """Bytes that will be written."""
    linked = {out.name for out in files if link and isinstance(out, Copied) and out.holds_tensors}
    record = manifest(plan, [WrittenFile(out.name, out.size, "0" * 64, linked=False) for out in files])
    return sum(out.size for out in files if out.name not in linked) + len(record)


def _same_disk(checkpoint: Checkpoint, parent: Path) -> bool:
    """Whether every tensor file lies in the file system that the output will lie in."""
    disk = parent.stat().st_dev
    return all((checkpoint.root / info.name).stat().st_dev == disk for info in checkpoint.files)


def _unlinked(planned: tuple[OutFile, ...], files: tuple[WrittenFile, ...]) -> Iterator[str]:
    """What was to be linked and was copied."""
    untouched = {out.name for out in planned if isinstance(out, Copied) and out.holds_tensors}
    for file in files:
        if file.name in untouched and not file.linked:
            yield f"{shown(file.name)}: copied, not linked: it is on another disk than the output, or that has no links"


def _sync(folder: Path, record: bytes) -> None:
    """Adds ``gemma-doctor.json`` and has it and every folder's entries put on the disk."""
    with (folder / MANIFEST).open("xb") as stream:
        stream.write(record)
        stream.flush()
        os.fsync(stream.fileno())
    for path in (*folder.rglob("*/"), folder):
        if path.is_dir():  # Python 3.10 yields files as well
            sync_folder(path)


@contextmanager
def _explaining(output: Path, source: FileBytes) -> Iterator[None]:
    """The system's errors in the user's terms; by now nothing of the output is left.

    A source that has changed is named first: writing from a page of it that is gone fails with "Bad address".
    """
    try:
        yield
    except OSError as error:
        source.check()
        what = f"{output}: it could not be written: {error.strerror or error}"
        advice = "Give an --output on a disk with room" if error.errno in _FULL else "Check the folder and the disk"
        raise OutputError(f"{what}. Nothing of it is left. {advice}, and repair again.") from error
