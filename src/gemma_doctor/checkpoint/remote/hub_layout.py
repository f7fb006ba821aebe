"""Which files of a repository make the checkpoint that a name of the Hub stands for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gemma_doctor.checkpoint.filenames import PICKLE_ADVICE, PICKLES, is_weights, parts_among
from gemma_doctor.checkpoint.hub_names import HubName
from gemma_doctor.checkpoint.layout import Layout, arrange, single
from gemma_doctor.checkpoint.quoting import listed, quoted
from gemma_doctor.errors import SourceNotFoundError

__all__ = ["Place", "place"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a checkpoint lies in its repository.

    Attributes:
        folder: Its folder, with a slash at its end; empty for the top.
        layout: Its files, relative to the folder.
    """

    folder: str
    layout: Layout


def place(name: HubName, files: Collection[str], root: Path) -> Place:
    """Chooses among the files of a repository as among those of a folder.

    Args:
        name: A repository, or a file or folder of one.
        files: The repository's files by their whole name.
        root: Where the repository is, or would be, on this machine.

    Raises:
        SourceNotFoundError: If there is no checkpoint, or more than one.
    """
    uri = str(name.at(None))
    if name.path in files:
        folder = name.path[: name.path.rfind("/") + 1]
        beside = _in(folder, files)
        return Place(folder, single(root / name.path, uri, lambda part: parts_among(part, beside)))
    folder = f"{name.path}/" if name.path else ""
    if folder and not any(file.startswith(folder) for file in files):
        raise SourceNotFoundError(f"{uri}: the repository has no such file or folder. {_some(files)}.")
    nothing = lambda: _nothing(name, folder, files)  # noqa: E731
    return Place(folder, arrange(uri, root / folder, _in(folder, files), nothing, _below(folder, files)))


def _in(folder: str, files: Collection[str]) -> tuple[str, ...]:
    """The files of a folder that lie in no folder of it and are not hidden, sorted."""
    names = (file.removeprefix(folder) for file in files if file.startswith(folder))
    return tuple(sorted(name for name in names if "/" not in name and not name.startswith(".")))


def _nothing(name: HubName, folder: str, files: Collection[str]) -> str:
    """What a repository holds where no checkpoint is."""
    where = f"in folder {quoted(folder)}" if folder else "at the top"
    looked = f"{name.at(None)}: no *.safetensors, no *.safetensors.index.json and no *.gguf {where} of this repository"
    if any(file.endswith(PICKLES) for file in _in(folder, files)):
        return f"{looked}, only PyTorch pickles. {PICKLE_ADVICE}."
    below = _below(folder, files)
    if below:
        return f"{looked}, but below it: {listed(below)}. Give the folder, as in hf://{name.repo}/{folder}{below[0]}."
    return f"{looked}. {_some(files)}."


def _below(folder: str, files: Collection[str]) -> tuple[str, ...]:
    """The folders of a folder that hold weights."""
    names = (file.removeprefix(folder) for file in files if file.startswith(folder))
    return tuple(sorted({name.rpartition("/")[0] for name in names if is_weights(name.rpartition("/")[2])} - {""}))


def _some(files: Collection[str]) -> str:
    return f"It has {len(files):,} file{'' if len(files) == 1 else 's'}: {listed(tuple(sorted(files)))}"
