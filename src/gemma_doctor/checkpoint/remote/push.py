"""The way back to the Hub: a folder becomes one commit of a repository that holds nothing else.

One commit, and on top of the one that was looked at: a repository never shows half a checkpoint, and nobody else's
files are mixed with it. What ``huggingface_hub`` does by itself is left to it: hashing, LFS and Xet, retries of parts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from yaml import YAMLError

from gemma_doctor.checkpoint.config import CONFIG_NAME
from gemma_doctor.checkpoint.quoting import listed, shown
from gemma_doctor.checkpoint.remote.hub_api import Access
from gemma_doctor.checkpoint.remote.refusals import LOG_IN
from gemma_doctor.errors import TransferError, UsageError

__all__ = ["CARD", "Access", "check_links", "check_target", "upload", "with_section"]

CARD = "README.md"
"""The model card's file."""

_HARMLESS = frozenset({".gitattributes", CARD})
"""What the Hub puts into a new repository, and what is written anew."""


def check_target(target: Access, *, force: bool) -> None:
    """Refuses what cannot be pushed to, before the work; nothing is created.

    Args:
        target: Where the checkpoint is to go; it need not exist.
        force: Whether its files may be replaced.

    Raises:
        UsageError: If it holds other files, or nobody is logged in.
        TransferError: If the Hub does not answer, or refuses.
    """
    if "/" not in target.repo:
        raise UsageError(f"--push {target.repo}: give owner and name of the repository, as in owner/name")
    if not (target.token or get_token()):
        raise UsageError(f"--push {target.repo}: nobody is logged in. Log in with {LOG_IN}.")
    try:
        _head(target, force=force)
    except RepositoryNotFoundError:
        return  # it will be created


def check_links(source: Path) -> None:
    """Refuses a checkpoint that holds links to files outside it: they are copied as files, and may be private.

    Args:
        source: The checkpoint that is to be sent once it is repaired; what lies on the Hub has no such links. The Hub's
            cache is made of links to its own blobs, which are meant; so is a tensor file that is named itself.

    Raises:
        UsageError: If there is such a link.
    """
    root = Path(os.path.realpath(source if source.is_dir() else source.parent))
    for path in _copied(source, root):
        real = Path(os.path.realpath(path))
        if path.is_symlink() and not (real.is_relative_to(root) or real.is_relative_to(root.parent.parent / "blobs")):
            name = shown(path.relative_to(root).as_posix())
            raise UsageError(
                f"{name}: a link to {shown(str(real))}, outside the checkpoint, whose content would be "
                "published. Put the file itself there, or remove the link, and repair again."
            )


def _copied(source: Path, root: Path) -> list[Path]:
    """What a repair takes over of a folder or an index, and of a single tensor file."""
    alone = not source.is_dir() and source.suffix != ".json"
    return [root / CONFIG_NAME] if alone else sorted(root.rglob("*"))


def _visible(folder: Path) -> dict[str, Path]:
    """The files that are sent, by name: none that is hidden, or lies in a hidden folder."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path for name, path in paths.items() if not any(part.startswith(".") for part in name.parts)
    }


def upload(folder: Path, target: Access, message: str, *, force: bool) -> str:
    """Makes the repository, if it is not there, and commits a folder's files to its main branch, but for hidden ones.

    Args:
        folder: What to send.
        target: Where to.
        message: The commit's first line.
        force: Whether files that the repository holds are replaced: those that the folder lacks are deleted.

    Returns:
        The commit's address.

    Raises:
        UsageError: If the repository holds other files.
        TransferError: If the Hub does not answer, or refuses. The repository has nothing of the folder then.
    """
    api = HfApi(token=target.token)
    with _telling(target.repo):
        api.create_repo(target.repo, exist_ok=True)
        parent, old = _head(target, force=force)
        files = _visible(folder)
        stale = sorted(old - files.keys() - _HARMLESS)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, path) for name, path in files.items()),
            *(CommitOperationDelete(name) for name in stale),
        ]
        return api.create_commit(target.repo, operations, commit_message=message, parent_commit=parent).commit_url


def _head(target: Access, *, force: bool) -> tuple[str | None, frozenset[str]]:
    """The last commit of a repository, and its files.

    Raises:
        RepositoryNotFoundError: If there is no such repository.
        UsageError: If it holds what would be lost, or mixed with the checkpoint.
    """
    with _telling(target.repo, missing=True):
        info = HfApi(token=target.token).model_info(target.repo)
    files = frozenset(sibling.rfilename for sibling in info.siblings or ())
    others = tuple(sorted(files - _HARMLESS))
    if others and not force:
        raise UsageError(
            f"{target.repo} at {constants.ENDPOINT} holds files already ({listed(others)}): push to a "
            "new repository, or add --force to replace them (its history keeps them)"
        )
    return info.sha, files


@contextmanager
def _telling(repo: str, *, missing: bool = False) -> Iterator[None]:
    """Turns what ``huggingface_hub`` raises into errors of this package.

    Args:
        repo: The repository.
        missing: Whether that it is not there is for the caller to judge.
    """
    try:
        yield
    except HfHubHTTPError as error:
        if missing and isinstance(error, RepositoryNotFoundError):
            raise
        raise TransferError(_refusal(repo, error)) from error
    except HFValidationError as error:
        raise UsageError(f"--push {repo}: {error}") from error
    except (OfflineModeIsEnabled, httpx2.HTTPError) as error:  # its words may hold a header, and so a token
        raise TransferError(
            f"{repo}: {constants.ENDPOINT} cannot be reached, or the connection broke ({type(error).__name__}). "
            "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
        ) from None


def _refusal(repo: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status in (401, 403, 404):
        return (
            f"{repo}: {constants.ENDPOINT} refuses the upload ({status}). The token must be allowed to write to "
            f"{repo.partition('/')[0]}: {LOG_IN}."
        )
    if status in (409, 412):
        return f"{repo}: somebody else has changed the repository meanwhile ({status}). Look at it and push again."
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{repo}: {constants.ENDPOINT} answers: {first}"


def with_section(card: str, section: str, base: str | None) -> str:
    """A model card with one more section at its end; its metadata stays.

    Args:
        card: The card; empty where the checkpoint has none.
        section: The section, in Markdown.
        base: The repository that the checkpoint came from, which becomes ``base_model`` where the metadata has none.

    Raises:
        UsageError: If the metadata cannot be read.
    """
    has_metadata = card.lstrip().startswith("---")
    try:
        known = ModelCard(card if has_metadata else f"---\n{{}}\n---\n{card}")
    except (ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{CARD}: the metadata at its top cannot be read ({reason}). Mend it.") from error
    if base is not None and known.data.get("base_model") is None:
        known.data["base_model"] = base
    known.text = f"{known.text.rstrip()}\n\n{section}" if known.text.strip() else section
    return str(known) if has_metadata or base is not None else known.text
