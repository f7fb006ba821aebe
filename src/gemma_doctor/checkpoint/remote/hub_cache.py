"""The Hub's cache on this machine: what has been downloaded, wholly or in part, and what is to be."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError, RevisionResolutionError

from gemma_doctor.checkpoint.config import CONFIG_NAME
from gemma_doctor.checkpoint.contents import read_checkpoint
from gemma_doctor.checkpoint.filenames import PICKLES, all_parts
from gemma_doctor.checkpoint.hub_names import HubName
from gemma_doctor.checkpoint.index import leaves_folder, read_index
from gemma_doctor.checkpoint.layout import Layout
from gemma_doctor.checkpoint.model import Checkpoint
from gemma_doctor.checkpoint.quoting import listed
from gemma_doctor.checkpoint.remote.hub_api import Access, listing, noted_head
from gemma_doctor.checkpoint.remote.hub_layout import Place, place
from gemma_doctor.checkpoint.remote.patience import patiently
from gemma_doctor.checkpoint.remote.refusals import explaining
from gemma_doctor.checkpoint.stores import Folder
from gemma_doctor.errors import SourceNotFoundError

__all__ = ["downloaded", "offline", "snapshot"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_OTHER_FORMATS = (*(f"*{ending}" for ending in PICKLES), "*.h5", "*.msgpack", "*.onnx", "*.tflite")
"""Weights in other formats, which a copy of the checkpoint does not need."""


def snapshot(repo: str, commit: str) -> Path:
    """Where the Hub's cache has a commit, or would have it: the layout that huggingface_hub documents.

    Args:
        repo: ``owner/name``.
        commit: The commit.
    """
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "snapshots" / commit


def downloaded(name: HubName, access: Access, agree: Callable[[str, str], None] | None = None) -> Checkpoint:
    """Downloads a checkpoint to the Hub's cache, where it is not there yet, and opens it there.

    Weights in other formats than the checkpoint's stay where they are, and so does what a name of one file leaves out.

    Args:
        name: A repository, or a file or folder of one.
        access: The repository.
        agree: Told its name and its format before gigabytes come; raises where it is not wanted.

    Raises:
        SourceNotFoundError: If there is no such repository or revision, no access to it, or no checkpoint in it.
        TransferError: If the Hub does not answer, or not as it should.
    """
    whole = _whole(name)
    if whole is not None:
        return whole
    commit = noted_head(access, name.revision)
    found = place(name, listing(access, commit), snapshot(name.repo, commit))  # refuses before gigabytes come
    if agree is not None:
        agree(str(name.at(None)), found.layout.format)

    def ask() -> None:
        with explaining(name.repo, commit):
            _snapshot(name, commit, found, access.token)

    patiently(name.repo, ask)
    return _opened(name, commit, found)


def _snapshot(name: HubName, commit: str, found: Place, token: str | None, *, local_files_only: bool = False) -> None:
    """Has huggingface_hub see to it that the cache has the files of a checkpoint."""
    folder, layout = glob.escape(found.folder), found.layout
    allowed, ignored = (
        [f"{folder}*"],
        [*_OTHER_FORMATS, "*.gguf" if layout.format == "safetensors" else "*.safetensors"],
    )
    if name.is_file and layout.index is None:
        allowed, ignored = [folder + glob.escape(file) for file in (*layout.files, CONFIG_NAME)], []
    snapshot_download(
        name.repo,
        revision=commit,
        token=token,
        allow_patterns=allowed,
        ignore_patterns=ignored,
        local_files_only=local_files_only,
    )


def _whole(name: HubName) -> Checkpoint | None:
    """What a commit holds, without asking anybody, if it has been downloaded before."""
    commit = name.revision or ""
    known = _listed(name.repo, commit) if _COMMIT.fullmatch(commit) else None
    if known is None:  # then huggingface_hub would take what is there for the whole
        return None
    found = place(name, known, snapshot(name.repo, commit))
    try:
        _snapshot(name, commit, found, None, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return _opened(name, commit, found)


def _listed(repo: str, commit: str) -> frozenset[str] | None:
    """All files of a commit, if the cache knows them: it does once a snapshot was downloaded, and not single files."""
    try:
        return frozenset(item.path for item in get_cached_repo_tree(repo, revision=commit))
    except CachedRepoTreeNotFoundError:
        return None


def offline(name: HubName) -> Checkpoint:
    """What the cache has, where HF_HUB_OFFLINE forbids to ask: all of the checkpoint, or an error.

    Args:
        name: A repository, or a file or folder of one.

    Raises:
        SourceNotFoundError: If it is not there, or only a part of it.
    """
    try:
        commit = HfApi().resolve_revision(name.repo, revision=name.revision, local_files_only=True).resolved
    except RevisionResolutionError:
        raise SourceNotFoundError(_uncached(name)) from None
    root = snapshot(name.repo, commit)
    here = frozenset(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    if not here:
        raise SourceNotFoundError(_uncached(name))
    known = _listed(name.repo, commit)
    found = place(name, here if known is None else known, root)
    missing = sorted({file for file in _needed(found, known or here) if not (found.layout.root / file).is_file()})
    if missing:
        raise SourceNotFoundError(_uncached(name, tuple(missing)))
    opened = _opened(name, commit, found)
    return opened if known is not None else replace(opened, remarks=(*opened.remarks, *_on_unlisted(opened)))


def _needed(found: Place, files: Collection[str]) -> Iterator[str]:
    """The files that a checkpoint consists of, there or not, relative to its folder."""
    layout = found.layout
    if found.folder + CONFIG_NAME in files:
        yield CONFIG_NAME
    if not layout.partial:
        for file in layout.files:
            yield from all_parts(file)
    if layout.index is not None:
        yield layout.index
        if (layout.root / layout.index).is_file():
            yield from _indexed(layout, layout.index)


def _indexed(layout: Layout, index: str) -> Iterator[str]:
    """The files that the index names, where it is the index that counts."""
    names = read_index(Folder(layout.root), index).files
    if set(layout.files) <= set(names):
        yield from (file for file in names if not leaves_folder(file))


def _on_unlisted(opened: Checkpoint) -> Iterator[str]:
    """What cannot be known of a repository of which single files have been fetched."""
    if opened.index is None or opened.config is None:
        files = listed(tuple(info.name for info in opened.files))
        yield (
            f"without a network nobody knows which files {opened.uri} has: what the Hub's cache holds was read "
            f"({files}), and there may be more"
        )


def _uncached(name: HubName, files: tuple[str, ...] = ()) -> str:
    """That something is not in the cache, and what to do."""
    where = name.at(None) if name.revision is None else f"{name.at(None)} at {name.revision}"
    what = f"{listed(files)} of {where}" if files else f"{where}"
    rest = f" ({len(files):,} files)" if len(files) > 1 else ""
    return (
        f"{what}{rest} {'are' if len(files) > 1 else 'is'} not in the Hub's cache ({constants.HF_HUB_CACHE}), and "
        f"HF_HUB_OFFLINE forbids to fetch it. Unset it, or run 'hf download {name.repo}' where there is a network."
    )


def _opened(name: HubName, commit: str, found: Place) -> Checkpoint:
    """A checkpoint of the cache."""
    opened = read_checkpoint(str(name.at(None)), found.layout, Folder(found.layout.root))
    return replace(opened, revision=commit)
