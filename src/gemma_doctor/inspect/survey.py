"""One pass over the bytes: from headers to ``{name: TensorStats}``, on the threads of this process or on any executor.

The work is cut into units (:mod:`gemma_doctor.inspect.units`), of which a bounded number is under way at any moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from gemma_doctor.checkpoint import Checkpoint, open_bytes
from gemma_doctor.cores import cores
from gemma_doctor.inspect import units
from gemma_doctor.inspect.crew import Crew
from gemma_doctor.inspect.units import Unit, cut, measure_unit
from gemma_doctor.inspect.witness import Site, Witness
from gemma_doctor.kernels.formats import why_unmeasured
from gemma_doctor.records import Progress, Skipped
from gemma_doctor.tensors import TensorInfo, TensorStats

__all__ = ["Survey", "survey"]

Result = TypeVar("Result")

_AHEAD = 4  # units under way for each that is measured at one time: nobody waits, and results do not pile up


@dataclass(frozen=True, slots=True)
class Survey:
    """What a survey found.

    Attributes:
        stats: The finished record of every measured tensor, in the order asked for.
        skipped: The tensors that cannot be measured, and why.
    """

    stats: Mapping[str, TensorStats]
    skipped: tuple[Skipped, ...]


def survey(
    checkpoint: Checkpoint,
    tensors: Iterable[TensorInfo],
    *,
    jobs: int | None = None,
    crew: Crew | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Measures tensors to their last element.

    Args:
        checkpoint: The checkpoint that holds them.
        tensors: Which ones.
        jobs: Threads; None for one per core that this process may use. A crew has its own.
        crew: Who measures, if not threads of this process. The result is the same.
        progress: Who is told how far it is.

    Raises:
        ChangedError: If a file changes meanwhile; nothing measured then counts.
        CheckpointError: If a file cannot be read.
        ClusterError: If the crew fails.
    """
    tensors = list(tensors)
    skipped = [Skipped(t.name, why) for t in tensors if (why := why_unmeasured(t.dtype))]
    unmeasured = {skip.tensor for skip in skipped}
    wanted = [tensor for tensor in tensors if tensor.name not in unmeasured]
    stats = {tensor.name: TensorStats() for tensor in wanted}
    if progress:
        progress.start(sum(tensor.nbytes for tensor in wanted))
    measured = _by_threads(checkpoint, wanted, jobs) if crew is None else _by_crew(checkpoint, wanted, crew)
    with closing(measured):
        for unit, results in measured:
            for piece, part in zip(unit, results, strict=True):
                known = stats[piece.tensor.name]
                stats[piece.tensor.name] = known.merge(part) if known.count else part  # most have one piece
            if progress:
                progress.advance(sum(piece.nbytes for piece in unit))
    return Survey(stats, tuple(skipped))


def _by_threads(
    checkpoint: Checkpoint, wanted: list[TensorInfo], jobs: int | None
) -> Generator[tuple[Unit, list[TensorStats]], None, None]:
    """Units and their records, in order, measured by threads of this process that share the open files."""
    with open_bytes(checkpoint) as files, ThreadPoolExecutor(threads := jobs or files.threads(cores())) as pool:
        submit = lambda unit: pool.submit(measure_unit, files, unit)  # noqa: E731
        yield from _in_order(submit, Future.result, cut(wanted, units.UNIT_BYTES), _AHEAD * threads)


def _by_crew(
    checkpoint: Checkpoint, wanted: list[TensorInfo], crew: Crew
) -> Generator[tuple[Unit, list[TensorStats]], None, None]:
    """The same, measured by a crew that opens the files itself; they are held open here to see them change."""
    site = Site.of(checkpoint, (tensor.file for tensor in wanted if tensor.nbytes))
    with open_bytes(checkpoint) as files:
        files.read_all([(file, 0, 0) for file in site.headers])  # none of their bytes
        witness = Witness(site)
        crew.admit(site)
        work = cut(wanted, crew.unit_bytes(sum(tensor.nbytes for tensor in wanted)))
        submit = lambda unit: crew.submit(site.for_unit(unit), unit)  # noqa: E731
        for unit, measured in _in_order(submit, crew.wait, work, _AHEAD * crew.width):
            witness.hear(measured.seen)
            yield unit, measured.parts


def _in_order(
    submit: Callable[[Unit], Future[Result]],
    wait: Callable[[Future[Result]], Result],
    work: Iterator[Unit],
    ahead: int,
) -> Iterator[tuple[Unit, Result]]:
    """Hands units out and yields their results in order; at most ``ahead`` are under way, and none after an error."""
    under_way = deque((unit, submit(unit)) for unit in islice(work, ahead))
    try:
        while under_way:
            unit, future = under_way.popleft()
            result = wait(future)
            under_way.extend((unit, submit(unit)) for unit in islice(work, 1))
            yield unit, result
    finally:
        for _, future in under_way:
            future.cancel()
