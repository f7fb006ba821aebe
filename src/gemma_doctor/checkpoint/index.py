"""The index of a sharded checkpoint: which file holds which tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gemma_doctor.checkpoint.documents import JSONObject, read_document
from gemma_doctor.checkpoint.quoting import quoted
from gemma_doctor.checkpoint.stores import Store
from gemma_doctor.errors import IndexFileError

__all__ = ["MAX_FILES", "MAX_INDEX", "Index", "leaves_folder", "read_index"]

MAX_INDEX = 200_000_000
"""Most bytes of an index: twice the largest header, for it repeats the file's name with each tensor."""

MAX_FILES = 10_000
"""Most files of a checkpoint: each is looked for by itself. The largest that are published have a few hundred."""

_AGAIN = "Write the index anew, or download it again."
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class Index:
    """What an index file says.

    Attributes:
        weight_map: tensor -> file, as written; names may lead anywhere: see :func:`leaves_folder`.
        total_size: ``metadata.total_size`` as written, which should be a number of bytes; None where there is none.
        doubled: Tensors that stand more than once (the last entry counts).
    """

    weight_map: Mapping[str, str]
    total_size: object = None
    doubled: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """The files it names, sorted: the order in which loaders read them."""
        return tuple(sorted(set(self.weight_map.values())))


def read_index(store: Store, name: str) -> Index:
    """Read ``model.safetensors.index.json`` or its like.

    Args:
        store: Where the checkpoint is.
        name: Name of the index file.

    Raises:
        FileNotFoundError: If there is no such file.
        IndexFileError: If it is too large, is not JSON, or its ``weight_map`` does not map strings to strings, or names
            more than :data:`MAX_FILES` files.
    """
    document = read_document(store, name, MAX_INDEX)
    weight_map = document.get("weight_map")
    if "weight_map" in document.doubled or not isinstance(weight_map, JSONObject):
        raise IndexFileError(f"{name}: it needs one weight_map, an object from tensors to files. {_AGAIN}")
    names: dict[str, str] = {}  # one string for each file: JSON makes one for each tensor
    files: dict[str, str] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise IndexFileError(f"{name}: weight_map has no file's name for {quoted(tensor)}. {_AGAIN}")
        files[tensor] = names.setdefault(file, file)
        if len(names) > MAX_FILES:
            raise IndexFileError(f"{name}: weight_map names more than {MAX_FILES:,} files, the limit. {_AGAIN}")
    metadata = document.get("metadata")
    total_size = metadata.get("total_size") if isinstance(metadata, JSONObject) else None
    return Index(files, total_size, weight_map.doubled)


def leaves_folder(file: str) -> bool:
    r"""Whether a file's name, as an index gives it, leads out of the index's folder on any system.

    The name alone is judged: absolute, a drive, a ``..``, a backslash, a NUL, or nothing at all. Symbolic links
    inside the folder are the owner's own (the Hub's cache links every file to ``../../blobs``).
    """
    parts = file.split("/")
    return not parts[0] or ".." in parts or "\\" in file or "\0" in file or bool(_DRIVE.match(file))
