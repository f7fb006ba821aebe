"""What the output will be, file by file, worked out before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

from gemma_doctor.checkpoint import Checkpoint, FileBytes
from gemma_doctor.checkpoint.gguf_values import uint32_bytes
from gemma_doctor.checkpoint.quoting import quoted, shown
from gemma_doctor.checkpoint.writer import ShardLayout, lay_out
from gemma_doctor.errors import CheckpointError
from gemma_doctor.plans import Plan
from gemma_doctor.records import FileInfo
from gemma_doctor.repair.applying.outfiles import Copied, OutFile, Patched, Rewritten
from gemma_doctor.repair.applying.schedule import Schedule, Target, schedule
from gemma_doctor.repair.applying.sidecars import config_file, index_file, side_files
from gemma_doctor.tensors import TensorInfo

__all__ = ["Outline", "check_whole", "outline"]


@dataclass(frozen=True, slots=True)
class Outline:
    """What the output will be.

    Attributes:
        schedule: What is done to the tensors and the config.
        files: Its files but ``gemma-doctor.json``, by name.
        folders: Its subfolders, by name.
        tensors: Its tensors by name, where they will lie.
        remarks: What of the source is left out.
    """

    schedule: Schedule
    files: tuple[OutFile, ...]
    folders: tuple[str, ...]
    tensors: Mapping[str, TensorInfo]
    remarks: tuple[str, ...]

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every tensor of the output."""
        return tuple(target for targets in self.schedule.files.values() for target in targets)


def outline(plan: Plan, checkpoint: Checkpoint, source: FileBytes) -> Outline:
    """Work out what the output will be.

    A tensor file in which nothing changes is taken as it is. A file whose index names none of its tensors any more
    is left out.

    Args:
        plan: What is to be done.
        checkpoint: The source, whole (see :func:`check_whole`).
        source: The source's files.

    Raises:
        UsageError: If the plan does not fit the checkpoint.
    """
    planned = schedule(plan.edits, checkpoint)
    infos = {info.name: info for info in checkpoint.files}
    kept = {file: targets for file, targets in planned.files.items() if targets or checkpoint.index is None}
    before = _by_file(checkpoint)
    shards = [
        _patched(infos[file], planned, checkpoint)
        if checkpoint.format == "gguf"
        else _shard(infos[file], before[file], targets, source)
        for file, targets in kept.items()
    ]
    tensors = _tensors(shards, checkpoint)
    renamed = {t.entry.name: t.origin.name for targets in kept.values() for t in targets if t.origin}
    documents = [config_file(checkpoint, planned), index_file(checkpoint, tensors, renamed)]
    made = [document for document in documents if document is not None]
    sides = side_files(checkpoint, frozenset((*infos, *(document.name for document in made))))
    empty = tuple(f"{shown(file)}: left out: none of its tensors is left" for file in infos.keys() - kept.keys())
    files = sorted((*shards, *made, *sides.files), key=lambda out: out.name)
    return Outline(planned, tuple(files), sides.folders, tensors, (*sorted(empty), *sides.remarks))


def check_whole(checkpoint: Checkpoint) -> None:
    """Refuse what cannot be repaired whatever the plan.

    A repaired copy of half a checkpoint would look whole; and of two tensors of one name only one is known.

    Args:
        checkpoint: The source.

    Raises:
        CheckpointError: If it is incomplete, or holds a tensor twice.
    """
    for fault in checkpoint.faults:
        if fault.kind != "index-mismatch":
            raise CheckpointError(f"{fault.message} It cannot be repaired as it is.")
    for name, why in checkpoint.unreachable.items():
        raise CheckpointError(f"tensor {quoted(name)} cannot be read: {why}. Download the checkpoint again.")
    if sum(info.tensors for info in checkpoint.files) != len(checkpoint.tensors):
        twice = next(fault.message for fault in checkpoint.faults if fault.tensor is not None)
        raise CheckpointError(f"a tensor stands in two files, and it is not known which is meant: {twice}")


def _by_file(checkpoint: Checkpoint) -> dict[str, list[TensorInfo]]:
    tensors: dict[str, list[TensorInfo]] = {info.name: [] for info in checkpoint.files}
    for tensor in sorted(checkpoint.tensors.values(), key=attrgetter("start", "stop")):
        tensors[tensor.file].append(tensor)
    return tensors


def _shard(info: FileInfo, before: list[TensorInfo], targets: tuple[Target, ...], source: FileBytes) -> OutFile:
    same_places = [_place(target) for target in targets] == [(t.name, t.dtype, t.shape) for t in before]
    if same_places and not any(target.changes for target in targets):
        return Copied(info.name, info.size, holds_tensors=True)
    if same_places:
        return Rewritten(info.name, ShardLayout(source.header(info.name), tuple(before), info.size), targets)
    return Rewritten(info.name, lay_out(info.name, [target.entry for target in targets], info.metadata), targets)


def _patched(info: FileInfo, planned: Schedule, checkpoint: Checkpoint) -> OutFile:
    edits = [edit for edit in planned.metadata if edit.file == info.name]
    patches = sorted((checkpoint.metadata[edit.key].at, uint32_bytes(edit.number)) for edit in edits)
    return (
        Patched(info.name, info.size, tuple(patches)) if patches else Copied(info.name, info.size, holds_tensors=True)
    )


def _place(target: Target) -> tuple[str, str, tuple[int, ...]]:
    return target.entry.name, target.entry.dtype, target.entry.shape


def _tensors(shards: list[OutFile], checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    copied = {out.name for out in shards if isinstance(out, Copied | Patched)}
    tensors = {name: info for name, info in checkpoint.tensors.items() if info.file in copied}
    for out in shards:
        if isinstance(out, Rewritten):
            tensors |= {info.name: info for info in out.layout.tensors}
    return tensors
