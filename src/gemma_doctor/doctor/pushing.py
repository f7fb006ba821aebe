"""Push: a mended checkpoint, sent to the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from gemma_doctor.checkpoint import is_repository
from gemma_doctor.errors import UsageError
from gemma_doctor.plans import Applied, Plan
from gemma_doctor.repair.applying.manifest import relisted
from gemma_doctor.repair.applying.sidecars import MANIFEST
from gemma_doctor.reports.card import card_section
from gemma_doctor.reports.documents import write
from gemma_doctor.version import __version__

__all__ = ["check_push", "push"]


def check_push(repo: str, *, token: str | None = None, force: bool = False) -> None:
    """Refuses a repository that a checkpoint cannot be pushed to; nothing is created.

    Args:
        repo: ``owner/name``; it need not exist.
        token: Access token for the Hub; the one of this machine if None.
        force: Whether its files may be replaced.

    Raises:
        UsageError: If it holds other files, or nobody is logged in.
        TransferError: If the Hub does not answer, or refuses.
    """
    room = _pushing()
    room.check_target(room.Repository(repo, token=token), force=force)


def push(plan: Plan, applied: Applied, repo: str, *, token: str | None = None, force: bool = False) -> str:
    """Sends a mended checkpoint to the Hub in one commit, its model card with a section about the repair.

    The card is written into the output first, so that what is sent is what the folder holds.

    Args:
        plan: What was done.
        applied: Where the output is.
        repo: ``owner/name``; it is created if it is not there.
        token: Access token for the Hub; the one of this machine if None.
        force: Whether files that the repository holds are replaced.

    Returns:
        The commit's address.

    Raises:
        UsageError: If the repository holds other files, the card cannot be read, or the source holds links to files
            outside it.
        TransferError: If the Hub does not answer, or refuses. The output stays.
    """
    room, folder = _pushing(), applied.output
    if os.path.isdir(plan.source):  # noqa: PTH112  # Path.is_dir raises on what it cannot look at
        room.check_links(Path(plan.source))
    base = plan.source.partition("@")[0] if is_repository(plan.source) else None
    _write_card(folder, room.CARD, lambda card: room.with_section(card, card_section(plan), base))
    message = f"Repaired by gemma-doctor {__version__}"
    address: str = room.upload(folder, room.Repository(repo, token=token), message, force=force)
    return address


def _write_card(folder: Path, name: str, edited: Callable[[str], str]) -> None:
    """Edit the model card of an output, and what its manifest says of it."""
    path = folder / name
    try:
        card = edited(path.read_text(encoding="utf-8") if path.exists() else "")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: it is not UTF-8 ({error.reason}). Mend it.") from None
    manifest = relisted((folder / MANIFEST).read_bytes(), name, card.encode())
    write(path, card)
    write(folder / MANIFEST, manifest.decode())


def _pushing() -> ModuleType:
    """What knows the Hub, loaded when it is needed."""
    return import_module("gemma_doctor.checkpoint.remote.push")
