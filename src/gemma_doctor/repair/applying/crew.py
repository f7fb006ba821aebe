"""The threads that write the output's files, and the one that waits for them and reports."""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from gemma_doctor.checkpoint import Checkpoint, FileBytes
from gemma_doctor.plans import WrittenFile
from gemma_doctor.records import FileInfo, Progress
from gemma_doctor.repair.applying.outfiles import Copied, OutFile
from gemma_doctor.repair.applying.streams import StoppedError, Stream

__all__ = ["Crew"]

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
"""Why a hard link may not be made although a copy can (link(2))."""


@dataclass(frozen=True, slots=True)
class Crew:
    """Who writes the files.

    Attributes:
        checkpoint: The source.
        source: Its tensor files, open.
        folder: The folder that becomes the output.
        link: Whether untouched tensor files are linked where that is possible.
        cores: Cores that may be used.
    """

    checkpoint: Checkpoint
    source: FileBytes
    folder: Path
    link: bool
    cores: int
    _stop: threading.Event = field(default_factory=threading.Event)
    _done: queue.SimpleQueue[int | None] = field(default_factory=queue.SimpleQueue)

    def write(self, files: Iterable[OutFile], progress: Progress | None = None) -> tuple[WrittenFile, ...]:
        """Write, check and hash all files, and have them put on the disk.

        Args:
            files: The files.
            progress: Who is told how far it is, from this thread.

        Returns:
            What was written, in the order of ``files``.

        Raises:
            OSError: If one cannot be written.
            OutputError: If one is read back as something else.
            CheckpointError: If the source cannot be read, or changes meanwhile.
        """
        files = tuple(files)
        for folder in {(self.folder / out.name).parent for out in files}:
            folder.mkdir(parents=True, exist_ok=True)  # an index may place shards where no folder was copied
        if progress:
            progress.start(sum(out.size for out in files))
        with ThreadPoolExecutor(self.cores) as pool:
            try:
                # The largest first: the threads then end at about the same time.
                by_size = sorted(files, key=lambda out: -out.size)
                futures = {out.name: self._submit(pool, out) for out in by_size}
                self._report(len(futures), progress)
                return _results([futures[out.name] for out in files])
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, out: OutFile) -> Future[WrittenFile]:
        future = pool.submit(self._write, out)
        future.add_done_callback(lambda _: self._done.put(None))
        return future

    def _report(self, left: int, progress: Progress | None) -> None:
        """Passes on what is done until no file is left; the first that fails stops the others."""
        while left:
            nbytes = self._done.get()
            if nbytes is None:
                left -= 1
            elif progress:
                progress.advance(nbytes)

    def _write(self, out: OutFile) -> WrittenFile:
        try:
            if isinstance(out, Copied) and not out.holds_tensors:
                with FileBytes(replace(self.checkpoint, files=(FileInfo(out.name, out.size),))) as side:
                    return self._stream(side).write(out, self._mode(out))
            stream = self._stream(self.source)
            if self._may_link(out) and self._linked(out):
                return stream.adopt(out)
            return stream.write(out, self._mode(out))
        except BaseException:
            self._stop.set()
            raise

    def _stream(self, source: FileBytes) -> Stream:
        return Stream(source, self.folder, self._done.put, self._stop)

    def _mode(self, out: OutFile) -> int:
        """Permission bits of the source's file of that name; as for ``cp``, the umask is taken from them."""
        try:
            return (self.checkpoint.root / out.name).stat().st_mode & 0o777
        except FileNotFoundError:  # gone meanwhile: who reads it says so
            return 0o666

    def _may_link(self, out: OutFile) -> bool:
        return self.link and isinstance(out, Copied) and out.holds_tensors

    def _linked(self, out: OutFile) -> bool:
        """Links the file itself, whatever links lead to it; False where that cannot be."""
        try:
            os.link(os.path.realpath(self.checkpoint.root / out.name), self.folder / out.name)
        except OSError as error:
            if error.errno in _NO_LINK:
                return False
            raise
        return True


def _results(futures: list[Future[WrittenFile]]) -> tuple[WrittenFile, ...]:
    """The results, or the error that made the others stop."""
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, StoppedError)):
        raise error
    return tuple(future.result() for future in futures)
