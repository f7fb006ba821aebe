"""What lies beside a file at a URL, where nothing lists it: ``config.json``, and the parts of a split GGUF file."""

from __future__ import annotations

from gemma_doctor.checkpoint.config import CONFIG_NAME
from gemma_doctor.checkpoint.filenames import all_parts
from gemma_doctor.checkpoint.model import Checkpoint
from gemma_doctor.checkpoint.stores import RemoteStore
from gemma_doctor.checkpoint.waiting import Waiters

__all__ = ["RefusedConfigError", "on_refused_config", "parts_there"]


class RefusedConfigError(FileNotFoundError):
    """The store does not give ``config.json``: a checkpoint is read without it, as if there were none."""


def parts_there(store: RemoteStore, name: str) -> tuple[str, ...]:
    """The file, or every part that is there of the split file that it is a part of: each is asked for.

    Args:
        store: Where it is.
        name: The file.

    Raises:
        UsageError: If it is one of more parts than anybody makes.
        TransferError: If the store does not answer, or refuses.
    """

    def there(part: str) -> bool:
        try:
            store.source(part)
        except FileNotFoundError:
            return False
        return True

    names = all_parts(name)
    with Waiters(store.streams, "parts") as pool:
        return tuple(part for part, found in zip(names, pool.map(there, names), strict=True) if found)


def on_refused_config(store: RemoteStore, checkpoint: Checkpoint) -> tuple[str, ...]:
    """What the user should know of a ``config.json`` that the store does not give; that there is none, others say.

    Args:
        store: Where the checkpoint is.
        checkpoint: The checkpoint.
    """
    if checkpoint.config is not None or checkpoint.format == "gguf":
        return ()
    try:
        store.source(CONFIG_NAME)
    except RefusedConfigError:
        return (
            f"{CONFIG_NAME} beside it is refused, if it is there: a signature, or a permission, may be for one file",
        )
    except FileNotFoundError:
        pass
    return ()
