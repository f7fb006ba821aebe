"""What measures tensors asks for their bytes here, wherever they are."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

from gemma_doctor.tensors import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Span", "TensorBytes"]

_HASH_CHUNK = 1 << 25

Span: TypeAlias = tuple[str, int, int]
"""A range of a file: its name, the offset of the first byte, and the offset one past the last."""


class TensorBytes(ABC):
    """The bytes of a checkpoint's tensor files, for any number of threads at once.

    A context manager. At its end every file read must still be what it was when its header was read, or
    :class:`ChangedError` says which one is not: what has been measured then is neither the old file nor the new one.
    """

    def __enter__(self) -> TensorBytes:  # noqa: PYI034  # typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.check()
        finally:
            self.close()

    def threads(self, cores: int) -> int:
        """How many threads it is best to measure with, on so many cores."""
        return cores

    def abandon(self) -> None:  # noqa: B027  # only who waits has something to end
        """Ends what threads wait for: nobody wants it any more, and the ``with`` block is about to end."""

    @abstractmethod
    def read(self, file: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The bytes of a range of a file.

        Args:
            file: Name of the file, as in :class:`TensorInfo`.
            start: Offset of the first byte.
            stop: Offset one past the last.

        Returns:
            Read-only bytes, shape (stop - start,).

        Raises:
            ChangedError: If the file is not what it was when its header was read, or is gone.
            CheckpointError: If the file cannot be read.
        """

    def read_all(self, spans: Sequence[Span]) -> list[npt.NDArray[np.uint8]]:
        """The bytes of several ranges, in their order.

        Args:
            spans: The ranges; neighbours in a file may be read in one go.

        Raises:
            ChangedError: If a file is not what it was when its header was read, or is gone.
            CheckpointError: If a file cannot be read.
        """
        return [self.read(*span) for span in spans]

    @abstractmethod
    def check(self) -> None:
        """Says whether every file read so far is still what it was; the end of the ``with`` block asks it too.

        Raises:
            ChangedError: If one is not.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of all files; the end of the ``with`` block does it."""

    def sha256(self, tensor: TensorInfo) -> str:
        """SHA-256 of a tensor's bytes as they lie in the file, in hexadecimal.

        Args:
            tensor: The tensor.

        Raises:
            ChangedError: If the file is not what it was when its header was read, or is gone.
            CheckpointError: If the file cannot be read.
        """
        digest = hashlib.sha256()
        for start in range(tensor.start, tensor.stop, _HASH_CHUNK):
            digest.update(self.read(tensor.file, start, min(start + _HASH_CHUNK, tensor.stop)).data)
        return digest.hexdigest()
