"""How a tensor file is refused whose header breaks its format, whichever that is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gemma_doctor.checkpoint.disguise import unmask
from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.errors import HeaderError

__all__ = ["Broken", "refusing"]


class Broken(Exception):  # noqa: N818 - becomes a HeaderError as soon as the file's name is known
    """A fact that breaks the format."""


@contextmanager
def refusing(file: str, form: str, head: bytes, advice: str, *, magic: bytes | None = None) -> Iterator[None]:
    """Turns a broken format into an error that names the file, says what it really is, and what to do.

    Args:
        file: How the message names the file.
        form: What the file should be: ``"safetensors"`` or ``"GGUF"``.
        head: The first :data:`~gemma_doctor.checkpoint.disguise.HEAD` bytes, or all there are.
        advice: What to do where the file is not recognised as something else.
        magic: Bytes that only a file of this form begins with, so that it is nothing else.

    Raises:
        HeaderError: Where the block raises :class:`Broken`.
    """
    try:
        yield
    except Broken as broken:
        disguise = None if magic is not None and head.startswith(magic) else unmask(head)
        fact, advised = (f"it is {disguise[0]}", disguise[1]) if disguise else (str(broken), advice)
        raise HeaderError(f"{shown(file)}: not a readable {form} file: {fact}. {advised}.") from None
