"""The last check of an output: opened as anybody would open it, it is the checkpoint that the plan describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_doctor.checkpoint import Checkpoint, open_checkpoint
from gemma_doctor.checkpoint.quoting import quoted
from gemma_doctor.errors import DoctorError, OutputError
from gemma_doctor.repair.applying.outline import Outline
from gemma_doctor.repair.applying.sidecars import is_folder, is_single_file

__all__ = ["prove"]

_BUG = "This is a fault of gemma-doctor: please report it, with the plan"


def prove(sketch: Outline, source: Checkpoint, folder: Path) -> None:
    """Open the output and hold names, dtypes, shapes, places, index and config against what was planned.

    The tensors' bytes have been compared when they were written.

    Args:
        sketch: What the output should be.
        source: The source.
        folder: Where the output is.

    Raises:
        OutputError: If it is not that.
    """
    try:
        found = open_checkpoint(_entrance(source, folder))
    except DoctorError as error:
        raise OutputError(f"the output cannot be opened: {error} {_BUG}.") from error
    old = {(fault.kind, fault.tensor) for fault in source.faults}
    for fault in found.faults:
        if (fault.kind, fault.tensor) not in old:
            raise OutputError(f"the output has a fault that the source has not: {fault.message} {_BUG}.")
    for name in sorted(found.tensors.keys() | sketch.tensors.keys()):
        if found.tensors.get(name) != sketch.tensors.get(name):
            raise OutputError(f"the output's tensor {quoted(name)} is not what the plan makes it. {_BUG}.")
    _check_metadata(sketch, source, found)
    for edit in {edit.path: edit for edit in sketch.schedule.config}.values():
        if _value(found.config, edit.path) != edit.value:
            raise OutputError(f"config.json: {'.'.join(edit.path)} is not what the plan makes it. {_BUG}.")


def _check_metadata(sketch: Outline, source: Checkpoint, found: Checkpoint) -> None:
    """GGUF metadata is what it was, but for the types that the plan sets."""
    types = {edit.key: "UINT32" for edit in sketch.schedule.metadata}
    wanted = {key: (types.get(key, value.type), value.content) for key, value in source.metadata.items()}
    if {key: (value.type, value.content) for key, value in found.metadata.items()} != wanted:
        raise OutputError(f"the output's GGUF metadata is not what the plan makes it. {_BUG}.")


def _entrance(source: Checkpoint, folder: Path) -> Path:
    """What of the output is to be opened: the like of what was opened of the source."""
    if is_folder(source):
        return folder
    return folder / (source.files[0].name if is_single_file(source) else Path(source.uri).name)


def _value(config: Mapping[str, Any] | None, path: tuple[str, ...]) -> object:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
