"""What the Hub's API says of a repository: the commit of a revision, and the files of a commit."""

from __future__ import annotations

from dataclasses import dataclass, field

from huggingface_hub import HfApi, constants
from huggingface_hub.hf_api import RepoFile

from gemma_doctor.checkpoint.remote.patience import patiently
from gemma_doctor.checkpoint.remote.refusals import explaining

__all__ = ["Access", "HubFile", "head", "listing", "noted_head"]


@dataclass(frozen=True, slots=True)
class Access:
    """A repository, and what opens it.

    Attributes:
        repo: ``owner/name``.
        token: Access token; the one of this machine if None.
    """

    repo: str
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the repository lists it.

    Attributes:
        size: Its bytes.
        etag: SHA-256 of its content where it lies in LFS or Xet, else its git id: what the Hub's ETag is.
    """

    size: int
    etag: str


def head(access: Access, revision: str | None) -> tuple[str, tuple[str, ...]]:
    """The commit that a revision stands for now, and what the user should know of the repository's name.

    Args:
        access: The repository.
        revision: Branch, tag or commit; its default branch if None.
    """

    def ask() -> tuple[str, str]:
        with explaining(access.repo, revision):
            timeout = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
            info = HfApi(token=access.token).model_info(access.repo, revision=revision, timeout=timeout)
            return str(info.sha), info.id

    commit, now = patiently(access.repo, ask)
    renamed = (f"{access.repo} is called {now} at the Hub now, and was read there: use that name",)
    return commit, () if now == access.repo else renamed


def noted_head(access: Access, revision: str | None) -> str:
    """The commit alone, which the cache takes note of, so that it finds it again without a network.

    Args:
        access: The repository.
        revision: Branch, tag or commit; its default branch if None.
    """

    def ask() -> str:
        with explaining(access.repo, revision):
            return str(HfApi(token=access.token).resolve_revision(access.repo, revision=revision).resolved)

    return patiently(access.repo, ask)


def listing(access: Access, commit: str) -> dict[str, HubFile]:
    """All files of a commit, by their whole name.

    Args:
        access: The repository.
        commit: The commit.
    """

    def ask() -> dict[str, HubFile]:
        with explaining(access.repo, commit):
            tree = HfApi(token=access.token).list_repo_tree(access.repo, recursive=True, revision=commit)
            return {item.path: _file(item) for item in tree if isinstance(item, RepoFile)}

    return patiently(access.repo, ask)


def _file(item: RepoFile) -> HubFile:
    return HubFile(item.size, item.lfs.sha256 if item.lfs is not None else item.blob_id)
