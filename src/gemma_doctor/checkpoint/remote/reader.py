"""Reading the tensors of a checkpoint that is elsewhere: in ranges, several at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from gemma_doctor.checkpoint.model import Checkpoint
from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.checkpoint.reader import FileBytes
from gemma_doctor.checkpoint.stores import RemoteStore, Source
from gemma_doctor.checkpoint.tensor_bytes import Span, TensorBytes
from gemma_doctor.checkpoint.waiting import Waiters
from gemma_doctor.errors import ChangedError

__all__ = ["CONNECTIONS", "REQUEST_BYTES", "RangeBytes"]

CONNECTIONS = 16
"""Requests under way at once: enough to hide the latency of each."""

REQUEST_BYTES = 8 << 20
"""Most bytes of one request: many of them share a line, and a broken one costs little."""

_THREADS = 4
"""Threads that measure, on however few cores: while one of them computes, the others' bytes come."""


class RangeBytes(TensorBytes):
    """The bytes of tensor files elsewhere; those that a cache on this machine has are mapped from there."""

    def __init__(self, checkpoint: Checkpoint, store: RemoteStore) -> None:
        """Nothing is opened yet.

        Args:
            checkpoint: The checkpoint.
            store: Where it is.
        """
        self._checkpoint = checkpoint
        self._store = store
        self._pool = Waiters(CONNECTIONS, "ranges")
        self._sources: dict[str, Source] = {}
        self._cached: dict[str, FileBytes] = {}
        self._lock = threading.Lock()

    def threads(self, cores: int) -> int:
        """More than there are cores, where these are few: most of the time is spent waiting."""
        return max(cores, _THREADS)

    def read(self, file: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The bytes of a range of a file; :class:`TensorBytes` says the rest."""
        return self.read_all([(file, start, stop)])[0]

    def read_all(self, spans: Sequence[Span]) -> list[npt.NDArray[np.uint8]]:
        """The bytes of several ranges, neighbours fetched together and all of them at once."""
        for file in {file for file, _, _ in spans}:
            self._open(file)
        runs = {run: self._ask(run) for run in _runs(spans)}
        arrived = {run: run_bytes() for run, run_bytes in runs.items()}
        return [_cut(span, arrived) for span in spans]

    def check(self) -> None:
        """Says whether every file read so far is still what it was; the end of the ``with`` block asks it too."""
        for local in self._cached.values():
            local.check()
        for _ in self._pool.map(lambda source: source.check(), self._sources.values()):
            pass

    def abandon(self) -> None:
        """Nobody waits for a server any more."""
        self._pool.call_off()

    def close(self) -> None:
        """Closes what is open; what is still under way, after an error, is called off."""
        self.abandon()
        self._pool.shutdown()
        for local in self._cached.values():
            local.close()
        self._cached.clear()

    def _open(self, file: str) -> None:
        with self._lock:
            if file in self._sources or file in self._cached:
                return
            path = self._store.cached(file)
            if path is not None:
                self._cached[file] = FileBytes(replace(self._checkpoint, root=path.parents[file.count("/")]))
                return
            try:
                self._sources[file] = self._store.source(file)
            except FileNotFoundError:
                raise ChangedError(f"{shown(file)}: it is gone. Scan again.") from None

    def _ask(self, run: Span) -> Callable[[], npt.NDArray[np.uint8]]:
        """Asks for a range in as many requests as it takes; what it returns waits for them."""
        file, start, stop = run
        local = self._cached.get(file)
        if local is not None:
            return partial(local.read, file, start, stop)
        array = np.empty(stop - start, np.uint8)
        out = array.data
        source = self._sources[file]
        requests = [
            self._pool.submit(source.read_into, start + at, out[at : at + REQUEST_BYTES])
            for at in range(0, len(out), REQUEST_BYTES)
        ]

        def arrived() -> npt.NDArray[np.uint8]:
            for request in requests:
                request.result()
            array.flags.writeable = False
            return array

        return arrived


def _runs(spans: Sequence[Span]) -> Iterator[Span]:
    """The ranges, those put together that follow each other in one file without a gap."""
    run: Span | None = None
    for file, start, stop in sorted(set(spans)):
        if run is not None and run[0] == file and start <= run[2]:
            run = (file, run[1], max(stop, run[2]))
            continue
        if run is not None:
            yield run
        run = (file, start, stop)
    if run is not None:
        yield run


def _cut(span: Span, arrived: Mapping[Span, npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """The part of a run that a range asked for."""
    file, start, stop = span
    run = next(run for run in arrived if run[0] == file and run[1] <= start and stop <= run[2])
    return arrived[run][start - run[1] : stop - run[1]]
