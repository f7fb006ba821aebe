"""Hub repositories, through ``huggingface_hub``: its session, tokens, endpoint, offline switch and cache.

A revision is resolved to a commit first, and everything is read at that commit. Files that the Hub's cache has at it
are read from there. Nothing is written to disk but by :func:`downloaded`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RevisionResolutionError
from huggingface_hub.hf_api import RepoFile

from gemma_doctor.checkpoint.contents import read_checkpoint
from gemma_doctor.checkpoint.layout import PICKLE_ADVICE, PICKLES, arrange, find_layout, is_weights, listed
from gemma_doctor.checkpoint.model import Checkpoint
from gemma_doctor.checkpoint.remote.hub_store import HubFile, HubStore, Repository
from gemma_doctor.checkpoint.remote.patience import patiently
from gemma_doctor.checkpoint.remote.refusals import explaining
from gemma_doctor.checkpoint.stores import Folder
from gemma_doctor.errors import SourceNotFoundError

__all__ = ["Repository", "downloaded", "streamed"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_OTHER_FORMATS = ("*.bin", "*.ckpt", "*.pkl", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.tflite")
"""Weights in other formats, which a copy of the checkpoint does not need."""


def streamed(wanted: Repository) -> Checkpoint:
    """Opens a repository; headers are read, and no tensor's bytes.

    Args:
        wanted: The repository.

    Raises:
        SourceNotFoundError: If there is no such repository or revision, no access to it, or no checkpoint in it.
        TransferError: If the Hub does not answer, or not as it should.
    """
    if constants.is_offline_mode():
        return _offline(wanted)
    commit = _commit(wanted)
    store = HubStore(wanted, commit, _listing(wanted, commit))
    root = _snapshot(wanted.repo, commit)
    nothing = lambda: _nothing(wanted.repo, store.files)  # noqa: E731
    layout = arrange(wanted.repo, root, _top(store.files), nothing, _below(store.files))
    opened = read_checkpoint(wanted.repo, layout, store)
    return replace(opened, revision=commit, store=store)


def downloaded(wanted: Repository) -> Checkpoint:
    """Downloads a repository to the Hub's cache, where it is not there yet, and opens it there.

    Weights in other formats than safetensors stay where they are.

    Args:
        wanted: The repository.

    Raises:
        SourceNotFoundError: If there is no such repository or revision, no access to it, or no checkpoint in it.
        TransferError: If the Hub does not answer, or not as it should.
    """
    if constants.is_offline_mode():
        return _offline(wanted)
    whole = _whole_in_cache(wanted)
    if whole is not None:
        return whole
    commit = _noted_commit(wanted)
    listing = _listing(wanted, commit)
    arrange(wanted.repo, Path(), _top(listing), lambda: _nothing(wanted.repo, listing))  # refuse before gigabytes come

    def ask() -> str:
        with explaining(wanted.repo, commit):
            return snapshot_download(
                wanted.repo, revision=commit, token=wanted.token, ignore_patterns=list(_OTHER_FORMATS)
            )

    return _in_cache(wanted.repo, commit, Path(patiently(wanted.repo, ask)))


def _listed(repo: str, commit: str) -> bool:
    """Whether the cache knows all files of a commit; without it, huggingface_hub takes what is there for the whole."""
    return (_snapshot(repo, commit).parents[1] / "trees" / f"{commit}.json").is_file()


def _whole_in_cache(wanted: Repository) -> Checkpoint | None:
    """What a commit holds, without asking anybody, if it has been downloaded before."""
    if wanted.revision is None or not _COMMIT.fullmatch(wanted.revision) or not _listed(wanted.repo, wanted.revision):
        return None
    try:
        folder = snapshot_download(
            wanted.repo, revision=wanted.revision, local_files_only=True, ignore_patterns=list(_OTHER_FORMATS)
        )
    except LocalEntryNotFoundError:
        return None
    return _in_cache(wanted.repo, wanted.revision, Path(folder))


def _top(files: Mapping[str, HubFile]) -> tuple[str, ...]:
    """The files that lie in no folder and are not hidden, sorted."""
    return tuple(sorted(name for name in files if "/" not in name and not name.startswith(".")))


def _commit(wanted: Repository) -> str:
    """The commit that a revision stands for now."""

    def ask() -> str:
        with explaining(wanted.repo, wanted.revision):
            return str(
                HfApi(token=wanted.token).model_info(wanted.repo, revision=wanted.revision, timeout=_timeout()).sha
            )

    return patiently(wanted.repo, ask)


def _noted_commit(wanted: Repository) -> str:
    """The same, which the cache takes note of, so that it finds the commit again without a network."""

    def ask() -> str:
        with explaining(wanted.repo, wanted.revision):
            api = HfApi(token=wanted.token)
            return str(api.resolve_revision(wanted.repo, revision=wanted.revision).resolved)

    return patiently(wanted.repo, ask)


def _listing(wanted: Repository, commit: str) -> dict[str, HubFile]:
    """All files of a commit."""

    def ask() -> dict[str, HubFile]:
        with explaining(wanted.repo, commit):
            tree = HfApi(token=wanted.token).list_repo_tree(wanted.repo, recursive=True, revision=commit)
            return {item.path: _file(item) for item in tree if isinstance(item, RepoFile)}

    return patiently(wanted.repo, ask)


def _timeout() -> float:
    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def _file(item: RepoFile) -> HubFile:
    return HubFile(item.size, item.lfs.sha256 if item.lfs is not None else item.blob_id)


def _offline(wanted: Repository) -> Checkpoint:
    """What the cache has of a repository, where HF_HUB_OFFLINE forbids to ask."""
    try:
        commit = HfApi().resolve_revision(wanted.repo, revision=wanted.revision, local_files_only=True).resolved
    except RevisionResolutionError:
        raise SourceNotFoundError(_uncached(wanted)) from None
    folder = _snapshot(wanted.repo, commit)
    if not folder.is_dir():
        raise SourceNotFoundError(_uncached(wanted))
    opened = _in_cache(wanted.repo, commit, folder)
    missing = next((fault.file for fault in opened.faults if "this file is missing" in fault.message), None)
    if missing is not None:
        raise SourceNotFoundError(_uncached(wanted, missing))
    return opened


def _uncached(wanted: Repository, file: str = "") -> str:
    revision = f" at {wanted.revision}" if wanted.revision else ""
    what = f"{file} of {wanted.repo}" if file else wanted.repo
    return (
        f"{what}{revision} is not in the Hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to fetch "
        f"it. Unset it, or run 'hf download {wanted.repo}' where there is a network."
    )


def _in_cache(repo: str, commit: str, folder: Path) -> Checkpoint:
    layout = find_layout(str(folder))
    return replace(read_checkpoint(repo, layout, Folder(layout.root)), revision=commit)


def _snapshot(repo: str, commit: str) -> Path:
    """Where the Hub's cache has a commit: the layout that huggingface_hub documents."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "snapshots" / commit


def _nothing(repo: str, files: Mapping[str, HubFile]) -> str:
    """What a repository holds that has no checkpoint at its top."""
    looked = f"{repo}: no *.safetensors, no *.safetensors.index.json and no *.gguf at the top of this repository"
    if any(name.endswith(PICKLES) for name in files):
        return f"{looked}, only PyTorch pickles. {PICKLE_ADVICE}."
    below = _below(files)
    if below:
        return f"{looked}, but below it: {listed(below)}. Run 'hf download {repo}' and give the subfolder."
    return f"{looked}; it has {len(files):,} files, such as {listed(tuple(sorted(files)))}."


def _below(files: Mapping[str, HubFile]) -> tuple[str, ...]:
    """The folders that hold weights."""
    folders = {name.rpartition("/")[0] for name in files if is_weights(name.rpartition("/")[2])}
    return tuple(sorted(folders - {""}))
