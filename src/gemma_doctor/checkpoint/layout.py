"""Which files make the checkpoint that SOURCE names."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from gemma_doctor.checkpoint.alike import alike
from gemma_doctor.checkpoint.filenames import (
    PICKLE_ADVICE,
    PICKLES,
    SHARD,
    is_adapter,
    is_copy,
    is_weights,
    parts_among,
    whole_of,
)
from gemma_doctor.checkpoint.quoting import listed, shown
from gemma_doctor.errors import SourceNotFoundError

__all__ = [
    "Layout",
    "arrange",
    "find_layout",
    "single",
]

_INDEX = re.compile(r".+\.safetensors\.index.*\.json", re.DOTALL)
_STEMS = ("model", "diffusion_pytorch_model")
"""What transformers and diffusers look for, the single file before the index."""

_SUBFOLDERS_SEEN = 100


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a checkpoint, before any of them is opened.

    Attributes:
        root: Folder that the names below are relative to.
        files: Tensor files, sorted; empty where the index alone decides.
        index: Name of the index file; None where there is none.
        partial: Whether SOURCE is one shard of several, so that absent tensors mean nothing.
        format: ``"safetensors"`` or ``"gguf"``.
        weights: Every file of weights in the folder that SOURCE names, of this checkpoint or not, and with a ``/``
            behind its name every folder in it that holds some.
    """

    root: Path
    files: tuple[str, ...]
    index: str | None = None
    partial: bool = False
    format: str = "safetensors"
    weights: tuple[str, ...] = ()


def find_layout(source: str) -> Layout:
    """Find the files that ``source`` stands for.

    A file is taken alone, but for a part of a split GGUF file, which stands for all of them, as llama.cpp takes it; an
    index stands for the files it names. A folder is searched for ``model.safetensors`` and its index, then diffusers'
    names, then for the only index there is, then for the only set of numbered shards, then for the only file that is
    neither an adapter nor a ``consolidated`` copy, then for one of these, and last for one GGUF file, which may be
    split. Two models are never taken for one. What is not chosen stands in ``Layout.weights``. Hidden files and
    folders inside are never read.

    Args:
        source: A path as the user gave it.

    Raises:
        SourceNotFoundError: If nothing there can be read, or several models can; says what was looked for.
    """
    path = Path(source)
    if _is_folder(source):
        return _in_folder(path)
    if not os.path.lexists(source):
        raise SourceNotFoundError(_absent(source))
    return single(path, str(path), lambda name: parts_among(name, _beside(path)))


def _absent(source: str) -> str:
    wanted = "Give a .safetensors or .gguf file, an index, or a folder that holds them"
    return f"{shown(source)}: no such file or folder{alike(source)}. {wanted}."


def single(path: Path, uri: str, beside: Callable[[str], tuple[str, ...]]) -> Layout:
    """The layout of one file that SOURCE names: an index, or tensors.

    Args:
        path: The file; only its name is looked at.
        uri: How messages call it.
        beside: Names all parts of the split GGUF file that one part is of.

    Raises:
        SourceNotFoundError: If its name says that it is something else.
    """
    if _INDEX.fullmatch(path.name):
        return Layout(path.parent, (), path.name)
    if path.suffix == ".gguf":
        return Layout(path.parent, beside(path.name), format="gguf")
    if path.suffix in PICKLES or ".bin.index" in path.name:
        raise SourceNotFoundError(f"{uri}: PyTorch pickles, not safetensors. {PICKLE_ADVICE}.")
    if path.suffix == ".json":
        raise SourceNotFoundError(f"{uri}: JSON, but not named *.safetensors.index.json. Give the folder instead.")
    shard = SHARD.fullmatch(path.name)
    return Layout(path.parent, (path.name,), partial=shard is not None and int(shard["count"]) > 1)


def _in_folder(root: Path) -> Layout:
    names = _files_in(root)
    return arrange(str(root), root, names, lambda: _nothing(root, names), _subfolders_with_weights(root))


def arrange(
    uri: str, root: Path, names: tuple[str, ...], nothing: Callable[[], str], below: Iterable[str] = ()
) -> Layout:
    """Choose among the files of a folder, wherever it is; :func:`find_layout` has the rules.

    Args:
        uri: How messages call the folder.
        root: The folder.
        names: Its files, sorted, without hidden ones and folders.
        nothing: Says what is there instead, where no checkpoint is.
        below: Its subfolders that hold weights.

    Raises:
        SourceNotFoundError: If there is no checkpoint among them, or more than one.
    """
    weights = (*filter(is_weights, names), *(f"{folder}/" for folder in below))
    return replace(_chosen(uri, root, names, nothing), weights=weights)


def _chosen(uri: str, root: Path, names: tuple[str, ...], nothing: Callable[[], str]) -> Layout:
    weights = tuple(name for name in names if name.endswith(".safetensors"))
    indexes = tuple(name for name in names if _INDEX.fullmatch(name))
    for stem in _STEMS:
        single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
        if single in weights or index in indexes:
            return Layout(root, (single,) if single in weights else (), index if index in indexes else None)
    if len(indexes) == 1:
        return Layout(root, (), indexes[0])
    if indexes:
        raise SourceNotFoundError(f"{uri}: several indexes: {listed(indexes)}. Give one of them.")
    if not weights:
        return _gguf_in_folder(uri, root, names, nothing)
    return Layout(root, _only_model(uri, weights))


def _only_model(uri: str, weights: tuple[str, ...]) -> tuple[str, ...]:
    """The files of the one model among files that no index speaks of.

    Raises:
        SourceNotFoundError: If there are several.
    """
    shards = _sets(name for name in weights if SHARD.fullmatch(name))
    mains = [files for files in shards if not is_copy(files[0])] or shards
    if len(mains) > 1:
        firsts = listed(tuple(files[0] for files in mains))
        raise SourceNotFoundError(
            f"{uri}: shards of several models, {firsts}, and no index. Give each model a folder of its own."
        )
    if mains:
        return mains[0]
    whole = tuple(name for name in weights if not is_adapter(name) and not is_copy(name)) or weights
    if len(whole) > 1:
        raise SourceNotFoundError(
            f"{uri}: {len(whole):,} files, {listed(whole)}, and no index that makes one model of them. Give one of "
            "them, or several to scan."
        )
    return whole


def _sets(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Numbered shards, those of one model together."""
    sets: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        sets.setdefault(whole_of(name), []).append(name)
    return [tuple(files) for files in sets.values()]


def _beside(path: Path) -> tuple[str, ...]:
    """The files of a split file's folder; of any other file none are needed."""
    return () if SHARD.fullmatch(path.name) is None else _files_in(path.parent)


def _gguf_in_folder(uri: str, root: Path, names: tuple[str, ...], nothing: Callable[[], str]) -> Layout:
    wholes = _gguf_files(names)
    if not wholes:
        raise SourceNotFoundError(nothing())
    if len(wholes) > 1:
        raise SourceNotFoundError(
            f"{uri}: {len(wholes)} GGUF files, each a model of its own: {', '.join(map(shown, wholes))}. Name one: "
            f"gemma-doctor scan {_file_of(uri, wholes[0])}"
        )
    return Layout(root, parts_among(wholes[0], names), format="gguf")


def _gguf_files(names: tuple[str, ...]) -> tuple[str, ...]:
    """The GGUF files, of a split one the first part, sorted."""
    return tuple(sorted({whole_of(name): name for name in reversed(names) if name.endswith(".gguf")}.values()))


def _file_of(uri: str, name: str) -> str:
    """SOURCE that names a file of the folder, for the shell."""
    return shlex.quote(f"{uri.rstrip('/')}/{name}")


def _files_in(root: Path) -> tuple[str, ...]:
    """Names in ``root`` that are no folders and not hidden, sorted."""
    try:
        paths = sorted(root.iterdir())
    except OSError as error:
        raise SourceNotFoundError(f"{root}: the folder cannot be listed: {error.strerror}. Check its mode.") from None
    return tuple(path.name for path in paths if not path.name.startswith(".") and not _is_folder(path))


def _is_folder(path: str | Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises on what it cannot look at


def _nothing(root: Path, names: tuple[str, ...]) -> str:
    looked = f"{root}: no *.safetensors, no *.safetensors.index.json and no *.gguf in this folder"
    if any(name.endswith(PICKLES) or ".bin.index" in name for name in names):
        return f"{looked}, only PyTorch pickles. {PICKLE_ADVICE}."
    below = _subfolders_with_weights(root)
    several = f"Give one of its subfolders, or several to scan: {listed(below)}."
    return f"{looked}. {several if below else 'Check the path.'}"


def _subfolders_with_weights(root: Path) -> tuple[str, ...]:
    """Subfolders, such as a diffusers pipeline or a training run has, that hold weights themselves."""
    folders = [path for path in sorted(root.iterdir()) if _is_folder(path) and not path.name.startswith(".")]
    return tuple(path.name for path in folders[:_SUBFOLDERS_SEEN] if any(map(is_weights, _names_in(path))))


def _names_in(folder: Path) -> list[str]:
    """The names in a folder that is looked at in passing; none where it cannot be listed."""
    try:
        return os.listdir(folder)  # noqa: PTH208  # names only: there may be many
    except OSError:
        return []
