"""What stands beside the tensor files: the index and ``config.json``, made to fit, and all that is only copied."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.checkpoint.config import CONFIG_NAME, MAX_CONFIG
from gemma_doctor.checkpoint.documents import read_document
from gemma_doctor.checkpoint.filenames import is_adapter
from gemma_doctor.checkpoint.files import reading
from gemma_doctor.checkpoint.hub_names import hub_name
from gemma_doctor.checkpoint.index import MAX_INDEX
from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.checkpoint.stores import Folder
from gemma_doctor.errors import UsageError
from gemma_doctor.repair.applying.config_text import set_value
from gemma_doctor.repair.applying.outfiles import Copied, Document
from gemma_doctor.repair.applying.schedule import Schedule
from gemma_doctor.tensors import TensorInfo

__all__ = ["MANIFEST", "Sides", "config_file", "index_file", "is_folder", "is_single_file", "side_files"]

MANIFEST = "gemma-doctor.json"
"""What a repaired checkpoint says of its own making."""

_BOOKKEEPING = (".cache", ".git")
"""Folders that downloads and clones keep for themselves: they describe the source's bytes, not the output's."""

_INDENT = re.compile(r"\{\n( +)")


@dataclass(frozen=True, slots=True)
class Sides:
    """The files that are only copied.

    Attributes:
        files: They.
        folders: Every folder below the root, for one may be empty.
        remarks: What is left out, and why, and which weights are not mended.
    """

    files: tuple[Copied, ...]
    folders: tuple[str, ...]
    remarks: tuple[str, ...]


def is_single_file(checkpoint: Checkpoint) -> bool:
    """Whether SOURCE names one tensor file, whose neighbours are none of its business but for ``config.json``."""
    return checkpoint.index is None and not is_folder(checkpoint)


def is_folder(checkpoint: Checkpoint) -> bool:
    """Whether SOURCE names a folder: of this machine, or of the Hub, where a repository is one."""
    far = hub_name(checkpoint.uri)
    return Path(checkpoint.uri).is_dir() if far is None else not far.is_file


def side_files(checkpoint: Checkpoint, made: frozenset[str]) -> Sides:
    """Every file of the checkpoint's folder and its subfolders that the output takes over as it is.

    Links to files are followed: the Hub's cache is made of them, and the output stands on its own.

    Args:
        checkpoint: The source.
        made: Names that the output makes by itself.
    """
    if is_single_file(checkpoint):
        wanted = [] if checkpoint.config is None or CONFIG_NAME in made else [CONFIG_NAME]
        copied = (Copied(name, (checkpoint.root / name).stat().st_size, holds_tensors=False) for name in wanted)
        return Sides(tuple(copied), (), ())
    files, folders, remarks = [], [], list(_as_they_are(checkpoint.beside))
    for name, path in _walk(checkpoint.root, ""):
        if name in made:
            continue
        if _is_folder(path):
            folders.append(name)
            continue
        found = _side_file(name, path)
        if isinstance(found, Copied):
            files.append(found)
        else:
            remarks.append(found)
    return Sides(tuple(files), tuple(folders), tuple(remarks))


def _as_they_are(beside: tuple[str, ...]) -> Iterator[str]:
    """What is copied and not mended, though it looks as if it were."""
    for name in beside:
        what = "it fits the weights before the repair: train or merge it anew" if is_adapter(name) else "not mended"
        yield f"{shown(name)}: copied as it is; {what}"


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """Everything, sorted, each folder before what is in it; bookkeeping folders as if they were files."""
    for path in sorted(folder.iterdir()):
        name = f"{prefix}{path.name}"
        yield name, path
        if _is_folder(path):
            yield from _walk(path, f"{name}/")


def _is_folder(path: Path) -> bool:
    """Whether it is a folder that is walked into."""
    return path.is_dir() and not path.is_symlink() and path.name not in _BOOKKEEPING


def _side_file(name: str, path: Path) -> Copied | str:
    """The file, or why it is left out."""
    if name == MANIFEST:
        return f"{name}: the source has one of an earlier repair; the output has its own"
    if path.name in _BOOKKEEPING and path.is_dir():
        return f"{shown(name)}: not copied: a download's or clone's own records, which do not fit the output"
    try:
        state = path.stat()
    except OSError as error:
        return f"{shown(name)}: not copied: {error.strerror} (a broken link?)"
    if stat.S_ISREG(state.st_mode):
        return Copied(name, state.st_size, holds_tensors=False)
    what = "a link to a folder" if stat.S_ISDIR(state.st_mode) else "neither a file nor a folder"
    return f"{shown(name)}: not copied: it is {what}"


def config_file(checkpoint: Checkpoint, schedule: Schedule) -> Document | None:
    """``config.json`` with its edits made and every other byte as it was; None where it has none.

    Raises:
        UsageError: If an edit's path leads nowhere.
    """
    if not schedule.config:
        return None
    text = _text(checkpoint.root / CONFIG_NAME, MAX_CONFIG)
    try:
        for edit in schedule.config:
            text = set_value(text, edit.path, edit.value)
    except KeyError as error:
        what = f"{CONFIG_NAME}: the plan sets {error.args[0]}, and there is no object to hold it"
        raise UsageError(f"{what}. Make the plan anew.") from None
    return Document(CONFIG_NAME, text.encode())


def index_file(
    checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], renamed: Mapping[str, str]
) -> Document | None:
    """The index of the output; None where the source has none, or one that still fits.

    ``weight_map`` keeps its order (sorted, if it was), and every other member stays. ``total_size`` and
    ``total_parameters`` are set where they stand; the latter moves by what was added and dropped, for some writers
    count a tied tensor twice.

    Args:
        checkpoint: The source.
        tensors: The output's tensors by name.
        renamed: Name in the output -> name in the source, for the tensors that both hold.
    """
    if checkpoint.index is None:
        return None
    old: dict[str, Any] = dict(read_document(Folder(checkpoint.root), checkpoint.index, MAX_INDEX))
    new = {**old, "weight_map": _weight_map(old["weight_map"], tensors, renamed)}
    if isinstance(old.get("metadata"), dict):
        new["metadata"] = _metadata(old["metadata"], checkpoint.tensors, tensors)
    if new == old and list(new["weight_map"]) == list(old["weight_map"]):
        return None
    text = _text(checkpoint.root / checkpoint.index, MAX_INDEX)
    indent = _INDENT.match(text)
    dumped = json.dumps(new, indent=len(indent[1]) if indent else None, ensure_ascii=text.isascii())
    return Document(checkpoint.index, (dumped + text[len(text.rstrip()) :]).encode())


def _weight_map(
    old: Mapping[str, str], tensors: Mapping[str, TensorInfo], renamed: Mapping[str, str]
) -> dict[str, str]:
    place = {name: number for number, name in enumerate(old)}
    names = sorted(tensors) if list(old) == sorted(old) else _in_place(place, tensors, renamed)
    return {name: tensors[name].file for name in names}


def _in_place(place: Mapping[str, int], tensors: Mapping[str, TensorInfo], renamed: Mapping[str, str]) -> list[str]:
    """The names in the order that the source's have; new ones last."""
    return sorted(tensors, key=lambda name: place.get(renamed.get(name, name), len(place)))


def _metadata(
    old: Mapping[str, Any], before: Mapping[str, TensorInfo], after: Mapping[str, TensorInfo]
) -> dict[str, Any]:
    new = dict(old)
    if "total_size" in old:
        new["total_size"] = sum(info.nbytes for info in after.values())
    if isinstance(old.get("total_parameters"), int):
        new["total_parameters"] += _elements(after) - _elements(before)
    return new


def _elements(tensors: Mapping[str, TensorInfo]) -> int:
    return sum(info.numel for info in tensors.values())


def _text(path: Path, limit: int) -> str:
    with reading(path, path.name) as (stream, _):
        return stream.read(limit).decode()
