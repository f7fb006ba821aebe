"""Where a checkpoint's files are: in a folder, or elsewhere. Headers, indexes and configs are read from either."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from gemma_doctor.checkpoint.files import reading

__all__ = ["Folder", "RemoteStore", "Source", "Store"]


class Store(Protocol):
    """Where a checkpoint's files are: plain data that pickles, so that other processes can open it themselves."""

    @property
    def streams(self) -> int:
        """How many files it is best to read at once."""

    def reading(self, name: str) -> AbstractContextManager[tuple[BinaryIO, int]]:
        """A file as a seekable stream, and its size in bytes.

        Args:
            name: The file, relative to the checkpoint.

        Raises:
            FileNotFoundError: If nothing has this name.
            CheckpointError: If it cannot be read.
            TransferError: If the store does not answer, or not as it should.
        """


class Source(Protocol):
    """One file of a remote store, for any number of threads."""

    def read_into(self, start: int, out: memoryview) -> None:
        """Fills ``out`` with the bytes from ``start`` on: to its end, or an error.

        Raises:
            ChangedError: If the file is no longer what it was.
            TransferError: If the store does not answer, or not as it should.
        """

    def check(self) -> None:
        """Says whether the file still is what it was.

        Raises:
            ChangedError: If it is not.
            TransferError: If the store does not answer.
        """


class RemoteStore(Store, Protocol):
    """A store whose files come over a network."""

    def source(self, name: str) -> Source:
        """One of its files, to be read in ranges.

        Raises:
            FileNotFoundError: If nothing has this name.
        """

    def only(self, names: Collection[str]) -> RemoteStore:
        """The same store for some of its files: less to send to another process."""

    def cached(self, name: str) -> Path | None:
        """The same file on this machine, if a cache has it."""

    def identity(self, name: str) -> str:
        """What tells the content of one of its files from another content, the same for every process that asks.

        Raises:
            FileNotFoundError: If nothing has this name.
            TransferError: If the store does not answer.
        """


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this machine.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def streams(self) -> int:
        """One: headers are small, and a disk is near."""
        return 1

    def reading(self, name: str) -> AbstractContextManager[tuple[BinaryIO, int]]:
        """A regular file as a stream, and its size in bytes."""
        return reading(self.root / name, name)
