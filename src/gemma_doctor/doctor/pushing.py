"""Push: a mended checkpoint, sent to the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from gemma_doctor.checkpoint.hub_names import hub_name
from gemma_doctor.errors import UsageError
from gemma_doctor.plans import Applied, Plan
from gemma_doctor.repair.applying.manifest import relisted
from gemma_doctor.repair.applying.sidecars import MANIFEST
from gemma_doctor.reports.card import card_section
from gemma_doctor.reports.documents import write
from gemma_doctor.version import __version__

__all__ = ["check_push", "push"]


def check_push(repo: str, source: str | os.PathLike[str], *, token: str | None = None, force: bool = False) -> None:
    """Refuses a checkpoint that cannot be pushed, or not there; nothing is created.

    Args:
        repo: ``owner/name``; it need not exist.
        source: The checkpoint that is to be repaired.
        token: Access token for the Hub; the one of this machine if None.
        force: Whether its files may be replaced.

    Raises:
        UsageError: If the repository holds other files, nobody is logged in, or the source holds links to files outside
            it.
        TransferError: If the Hub does not answer, or refuses.
    """
    room = _pushing()
    room.check_links(Path(source))
    room.check_target(room.Access(repo, token=token), force=force)


def push(  # noqa: PLR0913  # what is sent, where to, and how
    plan: Plan,
    applied: Applied,
    repo: str,
    *,
    source: str | os.PathLike[str] | None = None,
    token: str | None = None,
    force: bool = False,
) -> str:
    """Sends a mended checkpoint to the Hub in one commit, its model card with a section about the repair.

    The card is written into the output first, so that what is sent is what the folder holds.

    Args:
        plan: What was done.
        applied: Where the output is.
        repo: ``owner/name``; it is created if it is not there.
        source: What was repaired, if it lay elsewhere than the plan says.
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
    source = plan.source if source is None else os.fsdecode(source)
    room.check_links(Path(source))
    names = (hub_name(place) for place in (source, plan.source))
    base = next((name.repo for name in names if name is not None), None)
    _write_card(folder, room.CARD, lambda card: room.with_section(card, card_section(plan), base))
    message = f"Repaired by gemma-doctor {__version__}"
    address: str = room.upload(folder, room.Access(repo, token=token), message, force=force)
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
