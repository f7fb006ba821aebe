"""A unit measured in another process, perhaps on another machine, and proof that it was the same file.

What travels is plain data: the unit, and where its files are. Whoever measures opens them for that unit only, so that
a worker that dies leaves nothing behind and one that is idle holds nothing open; and what it saw of each file comes
back with the figures. Inode numbers and times mean nothing across machines, so two machines compare size and header
(its SHA-256); what one machine saw at different times must agree in inode, size and time of change as well. Of a file
that is elsewhere all compare what its store says of its content (an entity tag, as a rule).
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from gemma_doctor.checkpoint import Checkpoint, open_bytes
from gemma_doctor.checkpoint.files import reading
from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.errors import ChangedError, ClusterError
from gemma_doctor.inspect.units import Unit, measure_unit
from gemma_doctor.tensors import TensorStats
from gemma_doctor.version import __version__

__all__ = ["Measured", "Sighting", "Site", "Witness", "measure_at"]

Stamp: TypeAlias = tuple[int, int, int]
"""Inode, size in bytes, and time of the last change in ns: one file's state on one machine."""

_ELSEWHERE: Stamp = (0, 0, 0)
"""The stamp of a file that is on no machine's disk."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where the bytes of some tensors are, for any process on any machine that sees the same files.

    Attributes:
        checkpoint: The checkpoint: only what opening its files needs.
        headers: File -> bytes before its first tensor.
        version: Version of gemma-doctor that asks.
    """

    checkpoint: Checkpoint
    headers: Mapping[str, int]
    version: str = __version__

    @classmethod
    def of(cls, checkpoint: Checkpoint, files: Iterable[str]) -> Site:
        """The site of some of a checkpoint's files.

        Args:
            checkpoint: The checkpoint.
            files: Which of its files are read.
        """
        first: dict[str, int] = {}
        for tensor in checkpoint.tensors.values():
            first[tensor.file] = min(tensor.start, first.get(tensor.file, tensor.start))
        bare = Checkpoint(
            uri="",
            root=checkpoint.root.absolute(),
            format=checkpoint.format,
            files=(),
            tensors={},
            store=checkpoint.store,
        )
        known = {file: first[file] for file in dict.fromkeys(files)}
        return cls(replace(bare, files=checkpoint.files), known).only(known)

    def only(self, files: Iterable[str]) -> Site:
        """The same for fewer files.

        Args:
            files: Which of them.
        """
        kept = {file: self.headers[file] for file in files}
        infos = tuple(replace(info, metadata=None) for info in self.checkpoint.files if info.name in kept)
        store = self.checkpoint.store and self.checkpoint.store.only(kept)
        return replace(self, checkpoint=replace(self.checkpoint, files=infos, store=store), headers=kept)

    def unseen(self) -> str | None:
        """The first file that this machine does not see with the size it should have, and what it sees; None if all.

        What is elsewhere is not looked for: whoever cannot reach it says so when it measures.
        """
        if self.checkpoint.store is not None:
            return None
        for info in self.checkpoint.files:
            path = self.checkpoint.root / info.name
            try:
                size = path.stat().st_size
            except OSError as error:
                return f"{path}: {error.strerror}"
            if size != info.size:
                return f"{path}: it has {size:,} bytes there, and {info.size:,} here"
        return None

    def sight(self) -> tuple[Sighting, ...]:
        """What this machine sees of each file.

        Raises:
            CheckpointError: If one cannot be read.
        """
        return tuple(self._sight(file, stop) for file, stop in self.headers.items())

    def _sight(self, file: str, stop: int) -> Sighting:
        path, store = self.checkpoint.root / file, self.checkpoint.store
        try:
            if store is not None:
                return Sighting(file, socket.gethostname(), _ELSEWHERE, store.identity(file))
            state = path.stat()
            stamp = (state.st_ino, state.st_size, state.st_mtime_ns)
            return Sighting(file, socket.gethostname(), stamp, _header(path, file, stamp, stop))
        except OSError:
            raise ChangedError(f"{shown(file)}: the file was moved or deleted while it was read. Scan again.") from None


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one machine saw of a file.

    Attributes:
        file: The file, as in ``TensorInfo``.
        host: The machine's name.
        stamp: The file's state there.
        header: SHA-256 of its bytes before the first tensor, or what its store says of its content.
    """

    file: str
    host: str
    stamp: Stamp
    header: str


@dataclass(frozen=True, slots=True)
class Measured:
    """A unit, measured.

    Attributes:
        parts: The record of each of its pieces.
        seen: What was seen of its files.
    """

    parts: list[TensorStats]
    seen: tuple[Sighting, ...]


def measure_at(site: Site, unit: Unit) -> Measured:
    """Measures a unit in whatever process this is.

    Args:
        site: Where its bytes are.
        unit: What to measure.

    Raises:
        ClusterError: If this process runs another version of gemma-doctor than the one that asks.
        ChangedError: If a file is not what it was when its header was read, or changes meanwhile.
        CheckpointError: If a file cannot be read.
    """
    if site.version != __version__:
        raise ClusterError(
            f"gemma-doctor {__version__} on {socket.gethostname()} was asked to measure for gemma-doctor "
            f"{site.version}. Install the same version on both."
        )
    with open_bytes(site.checkpoint) as files:  # its end says whether they stayed what they were
        return Measured(measure_unit(files, unit), site.sight())


class Witness:
    """Compares what all machines saw of the files."""

    def __init__(self, site: Site) -> None:
        """Looks at the files from here.

        Args:
            site: All files that are read.
        """
        self._header: dict[str, str] = {}
        self._stamps: dict[tuple[str, str], Stamp] = {}
        self.hear(site.sight())

    def hear(self, seen: Iterable[Sighting]) -> None:
        """Takes down what one machine saw.

        Args:
            seen: Its sightings.

        Raises:
            ChangedError: If it is another file than this machine sees, or not what was seen there before.
        """
        for one in seen:
            if self._header.setdefault(one.file, one.header) != one.header:
                raise ChangedError(
                    f"{shown(one.file)}: {one.host} sees a file with another header or content. Give every worker the "
                    "files that this machine sees; scan again."
                )
            if self._stamps.setdefault((one.host, one.file), one.stamp) != one.stamp:
                raise ChangedError(
                    f"{shown(one.file)}: the file changed while it was read: {one.host} saw two states of it. "
                    "Let the writer finish; scan again."
                )


@lru_cache(maxsize=4096)
def _header(path: Path, name: str, stamp: Stamp, stop: int) -> str:  # noqa: ARG001  # another state is another entry
    """SHA-256 of the first ``stop`` bytes of a file in that state."""
    with reading(path, name) as (stream, _):
        return hashlib.sha256(stream.read(stop)).hexdigest()
