"""Hub repositories, through ``huggingface_hub``: its session, tokens, endpoint, offline switch and cache.

A revision is resolved to a commit first, and everything is read at that commit. Files that the Hub's cache has at it
are read from there. Nothing is written to disk but by a download.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from huggingface_hub import constants

from gemma_doctor.checkpoint.contents import read_checkpoint
from gemma_doctor.checkpoint.hub_names import HubName
from gemma_doctor.checkpoint.model import Checkpoint
from gemma_doctor.checkpoint.remote.hub_api import Access, head, listing
from gemma_doctor.checkpoint.remote.hub_cache import downloaded, offline, snapshot
from gemma_doctor.checkpoint.remote.hub_layout import place
from gemma_doctor.checkpoint.remote.hub_store import HubStore

__all__ = ["open_repository"]


def open_repository(
    name: HubName, token: str | None, *, download: bool, agree: Callable[[str, str], None] | None = None
) -> Checkpoint:
    """Opens the checkpoint that a name of the Hub stands for; headers are read, and no tensor's bytes.

    Args:
        name: A repository, or a file or folder of one.
        token: Access token; the one of this machine if None.
        download: Whether it is downloaded to the Hub's cache first, where it is not there yet, and opened there.
        agree: Told its name and its format before that; raises where it is not wanted.

    Raises:
        SourceNotFoundError: If there is no such thing, no access to it, or no checkpoint in it.
        TransferError: If the Hub does not answer, or not as it should.
    """
    access = Access(name.repo, token)
    if constants.is_offline_mode():
        return offline(name)
    return downloaded(name, access, agree) if download else _streamed(name, access)


def _streamed(name: HubName, access: Access) -> Checkpoint:
    """A checkpoint that is read where it is."""
    commit, remarks = head(access, name.revision)
    files = listing(access, commit)
    found = place(name, files, snapshot(name.repo, commit))
    store = HubStore(access, commit, files, found.folder)
    uri = str(name.at(None))
    opened = read_checkpoint(uri, found.layout, store)
    return replace(opened, revision=commit, store=store, remarks=(*remarks, *opened.remarks))
