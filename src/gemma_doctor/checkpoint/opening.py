"""What SOURCE names: a path of this machine, a Hub repository, or a URL."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib import import_module

from gemma_doctor.checkpoint.alike import alike
from gemma_doctor.checkpoint.contents import read_checkpoint
from gemma_doctor.checkpoint.hub_names import HubName, hub_name
from gemma_doctor.checkpoint.layout import find_layout
from gemma_doctor.checkpoint.model import Checkpoint
from gemma_doctor.checkpoint.reader import FileBytes
from gemma_doctor.checkpoint.stores import Folder
from gemma_doctor.checkpoint.tensor_bytes import TensorBytes
from gemma_doctor.errors import TransferError, UsageError
from gemma_doctor.tensors import TensorInfo

__all__ = ["is_repository", "open_bytes", "open_checkpoint", "sha256"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.+", re.DOTALL)


def open_checkpoint(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    download: bool = False,
    agree: Callable[[str, str], None] | None = None,
) -> Checkpoint:
    """Read the headers of a checkpoint, its index and its config; no tensor's bytes.

    What is wrong with the files becomes a fault of the checkpoint; tensors that the index promises and no
    readable file holds go to ``unreachable``.

    Args:
        source: A ``.safetensors`` or ``.gguf`` file, a folder that holds some, or an index file; where there is no such
            path, a Hub repository ``owner/name`` or ``owner/name@revision``, a file of one (``owner/name/file.gguf``),
            or a URL.
        revision: Branch, tag or commit of a Hub repository; its default branch if None.
        token: Access token for the Hub; the one that ``hf auth login`` or ``HF_TOKEN`` gives if None.
        download: Whether a Hub repository is downloaded to the Hub's cache and opened there.
        agree: Told its name and its format before that; raises where it is not wanted.

    Raises:
        SourceNotFoundError: If nothing there can be read.
        UsageError: If a revision is given for what has none, or a token for what is not the Hub's.
        IndexFileError: If the index or ``config.json`` is broken.
        TransferError: If the Hub or the store does not answer, or not as it should.
    """
    uri = os.fsdecode(source)
    name = hub_name(uri)
    if name is not None:
        return _from_hub(name.at(_one(revision, name.revision)), token, download=download, agree=agree)
    if revision is not None or download:
        raise UsageError(f"{uri}: only Hub repositories (owner/name) have revisions and are downloaded")
    if _URL.fullmatch(uri) and not os.path.lexists(uri):
        return _elsewhere(uri, token)
    layout = find_layout(uri)
    if token is not None:
        raise UsageError(f"{uri}: a token is for the Hub, and this is no repository of it. Leave --token out")
    return read_checkpoint(uri, layout, Folder(layout.root))


def is_repository(source: str | os.PathLike[str]) -> bool:
    """Whether SOURCE names a Hub repository, or a file or folder of one, and no path of this machine."""
    return hub_name(os.fsdecode(source)) is not None


def _one(option: str | None, suffix: str | None) -> str | None:
    if option is not None and suffix is not None and option != suffix:
        raise UsageError(f"two revisions: {option} and {suffix}. Give one of them")
    return option or suffix


def _from_hub(
    name: HubName, token: str | None, *, download: bool, agree: Callable[[str, str], None] | None
) -> Checkpoint:
    hub = import_module("gemma_doctor.checkpoint.remote.hub")  # half a second, which local scans do not pay
    try:
        opened: Checkpoint = hub.open_repository(name, token, download=download, agree=agree)
    except TransferError as error:
        raise type(error)(f"{error}{alike(name.repo)}") from error
    return opened


def _elsewhere(uri: str, token: str | None) -> Checkpoint:
    room = "web" if uri.lower().startswith(("http://", "https://")) else "filesystems"
    opened: Checkpoint = import_module(f"gemma_doctor.checkpoint.remote.{room}").open_url(uri, token)
    return opened


def open_bytes(checkpoint: Checkpoint) -> TensorBytes:
    """What reads the tensors of a checkpoint, wherever its files are.

    Args:
        checkpoint: The checkpoint; it may come from another process.
    """
    if checkpoint.store is None:
        return FileBytes(checkpoint)
    from gemma_doctor.checkpoint.remote.reader import RangeBytes  # noqa: PLC0415  # brings the HTTP client

    return RangeBytes(checkpoint, checkpoint.store)


def sha256(checkpoint: Checkpoint, tensor: TensorInfo) -> str:
    """SHA-256 of a tensor's bytes as they lie in the file, in hexadecimal.

    Args:
        checkpoint: The checkpoint that holds it.
        tensor: The tensor.

    Raises:
        ChangedError: If the file changes meanwhile.
        CheckpointError: If the file cannot be read.
    """
    with open_bytes(checkpoint) as files:
        return files.sha256(tensor)
