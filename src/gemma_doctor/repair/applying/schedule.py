"""A plan's edits, composed: what each tensor file of the output will hold, and what is to be done to each tensor.

An edit names a tensor by the name that it has when its turn comes: after ``Rename(a, b)`` it is ``b``. A name is free
again once its tensor has been dropped or renamed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.checkpoint.dtypes import BITS
from gemma_doctor.checkpoint.gguf_values import as_uint32
from gemma_doctor.checkpoint.quoting import quoted
from gemma_doctor.checkpoint.writer import Entry
from gemma_doctor.errors import UsageError
from gemma_doctor.plans import (
    Add,
    Cast,
    Clamp,
    Drop,
    Edit,
    Rename,
    Scale,
    ScaleGain,
    SetConfig,
    SetMetadata,
    ZeroNonfinite,
)
from gemma_doctor.repair.elements.edits import Change, dtype_after, why_impossible
from gemma_doctor.tensors import TensorInfo

__all__ = ["Schedule", "Target", "schedule"]

_REPLAN = "Make the plan anew from this checkpoint, or mend the plan"


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of the output.

    Attributes:
        entry: Its name, dtype and shape there.
        origin: Where its bytes come from; None for one that is added, which begins as zeros.
        begins_as: The dtype before the first change.
        changes: What is done to its elements, in order.
    """

    entry: Entry
    origin: TensorInfo | None
    begins_as: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the output will hold.

    Attributes:
        files: The tensors of each tensor file, in their order; every file of the source stands here.
        config: The edits of ``config.json``, in order.
        metadata: The edits of a GGUF file's metadata.
    """

    files: Mapping[str, tuple[Target, ...]]
    config: tuple[SetConfig, ...]
    metadata: tuple[SetMetadata, ...] = ()


@dataclass(slots=True, eq=False)
class _Slot:
    """A tensor while edits are being composed."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    origin: TensorInfo | None
    begins_as: str
    changes: list[Change] = field(default_factory=list)
    dropped: bool = False


def schedule(edits: Iterable[Edit], checkpoint: Checkpoint) -> Schedule:
    """Compose the edits of each tensor.

    Args:
        edits: In the order in which they are carried out.
        checkpoint: The source, each tensor in one file only.

    Raises:
        UsageError: If an edit names an unknown tensor, or one that is gone; if two collide; if one is impossible for
            the tensor's dtype. The message names the edit.
    """
    composer = _Composer(checkpoint)
    for number, edit in enumerate(edits, 1):
        fact = composer.take(edit)
        if fact:
            what = f"{type(edit).__name__} of {edit.pass_name}"
            raise UsageError(f"the plan's edit {number} ({what}) cannot be carried out: {fact}. {_REPLAN}.")
    return composer.schedule()


class _Composer:
    """The tensors by their current names; each method returns what makes its edit impossible."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files: dict[str, list[_Slot]] = {info.name: [] for info in checkpoint.files}
        self._checkpoint = checkpoint
        self._metadata: list[SetMetadata] = []
        self._config: list[SetConfig] = []
        self._slots: dict[str, _Slot] = {}
        self._gone: dict[str, str] = {}
        for info in sorted(checkpoint.tensors.values(), key=lambda info: (info.start, info.stop)):
            slot = _Slot(info.name, info.dtype, info.shape, info.file, info, info.dtype)
            self._files[info.file].append(slot)
            self._slots[info.name] = slot

    def schedule(self) -> Schedule:
        """What the edits taken so far come to."""
        files = {
            file: tuple(
                Target(Entry(slot.name, slot.dtype, slot.shape), slot.origin, slot.begins_as, tuple(slot.changes))
                for slot in slots
                if not slot.dropped
            )
            for file, slots in self._files.items()
        }
        return Schedule(files, tuple(self._config), tuple(self._metadata))

    def take(self, edit: Edit) -> str | None:
        """Compose one more edit."""
        match edit:
            case SetMetadata():
                return self._set_metadata(edit)
            case _ if self._checkpoint.format != "safetensors":
                return f"it edits safetensors, and the checkpoint is {self._checkpoint.format}"
            case SetConfig():
                self._config.append(edit)
                return "there is no config.json" if self._checkpoint.config is None else None
            case Add():
                return self._add(edit)
            case Drop() | Rename() | Scale() | ScaleGain() | Cast() | Clamp() | ZeroNonfinite():
                slot = self._slots.get(edit.tensor)
                return self._unknown(edit.tensor) if slot is None else self._change(edit, slot)

    def _change(self, edit: Drop | Rename | Change, slot: _Slot) -> str | None:
        match edit:
            case Drop():
                slot.dropped = True
                self._forget(slot.name, "dropped")
            case Rename():
                return self._rename(slot, edit.to)
            case _:
                why = why_impossible(edit, slot.dtype)
                if why:
                    return f"tensor {quoted(slot.name)}: {why}"
                slot.changes.append(edit)
                slot.dtype = dtype_after(edit, slot.dtype)
        return None

    def _set_metadata(self, edit: SetMetadata) -> str | None:
        first = next((info.name for info in self._checkpoint.files), "")
        value = self._checkpoint.metadata.get(edit.key) if edit.file == first else None
        if value is None:
            return f"there is no GGUF metadata {quoted(edit.key)} in {quoted(edit.file)}"
        if as_uint32(value) != edit.number:
            return f"{quoted(edit.key)} is {value.content!r} ({value.type}), not {edit.number} in four bytes"
        self._metadata.append(edit)
        return None

    def _rename(self, slot: _Slot, to: str) -> str | None:
        why = self._unfit(to)
        if why:
            return why
        self._forget(slot.name, f"renamed to {quoted(to)}")
        slot.name = to
        self._slots[to] = slot
        return None

    def _add(self, edit: Add) -> str | None:
        beside = self._slots.get(edit.beside)
        if beside is None:
            return self._unknown(edit.beside)
        why = self._unfit(edit.tensor)
        if why or edit.dtype not in BITS or min(edit.shape, default=0) < 0:
            return why or f"safetensors has no {quoted(edit.dtype)} of shape {list(edit.shape)}"
        slot = _Slot(edit.tensor, edit.dtype, edit.shape, beside.file, None, edit.dtype)
        neighbours = self._files[beside.file]
        neighbours.insert(neighbours.index(beside) + 1, slot)
        self._slots[edit.tensor] = slot
        return None

    def _forget(self, name: str, how: str) -> None:
        del self._slots[name]
        self._gone[name] = how

    def _unknown(self, name: str) -> str:
        if name in self._gone:
            return f"an earlier edit has {self._gone[name]} tensor {quoted(name)}"
        return f"there is no tensor {quoted(name)}"

    def _unfit(self, name: str) -> str | None:
        """Why no tensor can be given this name."""
        if name in self._slots:
            return f"there is a tensor {quoted(name)} already"
        return "__metadata__ is no tensor's name" if name == "__metadata__" else None
