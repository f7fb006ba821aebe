"""Scan several checkpoints: with a crew, the next are measured while the last of the earlier still are."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeAlias

from gemma_doctor.doctor.options import Options
from gemma_doctor.doctor.scanning import Case, judged, opened, scan
from gemma_doctor.errors import DoctorError
from gemma_doctor.inspect.crew import Crew, hire
from gemma_doctor.inspect.line import Failure, in_turn
from gemma_doctor.inspect.orders import Survey
from gemma_doctor.records import Progress, Report

__all__ = ["Outcome", "Round", "scan_all"]

_OPENED_AHEAD = 8
"""Checkpoints whose headers are read before it is their turn: elsewhere that takes some round trips."""

Outcome: TypeAlias = Report | DoctorError | OSError
"""The report on one source, or the error that ended it."""


def _unseen(_: int) -> AbstractContextManager[Progress | None]:
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Round:
    """Some sources, and how they are examined.

    Attributes:
        sources: The sources.
        options: How to examine the source of that number; what it raises ends that source.
        watch: Who is told how far the source of that number is, for as long as its results come.
    """

    sources: Sequence[str | os.PathLike[str]]
    options: Callable[[int], Options]
    watch: Callable[[int], AbstractContextManager[Progress | None]] = _unseen

    def outcomes(self, crew: Crew | None) -> Generator[Outcome, None, None]:
        """What becomes of each source, in their order.

        Args:
            crew: Who measures; None for threads of this process, which take one source after the other.
        """
        return self._one_by_one() if crew is None else self._by_crew(crew)

    def _one_by_one(self) -> Generator[Outcome, None, None]:
        for number, source in enumerate(self.sources):
            try:
                options = self.options(number)
                with self.watch(number) as progress:
                    report = scan(source, options, progress)
            except (DoctorError, OSError) as error:
                yield error
            else:
                yield report

    def _by_crew(self, crew: Crew) -> Generator[Outcome, None, None]:
        """The same; ``seconds`` of a report are those since the report before it."""
        begun: deque[Future[Case]] = deque()
        pool = ThreadPoolExecutor(_OPENED_AHEAD, "opening")
        started = time.perf_counter()
        try:
            with closing(in_turn(self._opening(pool, begun), crew, self.watch)) as measured:
                for outcome in measured:
                    yield _judged(begun.popleft(), outcome, started)
                    started = time.perf_counter()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _opening(self, pool: Executor, begun: deque[Future[Case]]) -> Iterator[Future[Case]]:
        """The sources as they are opened by threads, a few ahead; all that have been begun are also put down."""
        numbers = iter(range(len(self.sources)))
        begin = lambda number: pool.submit(self._opened, number)  # noqa: E731
        ahead = deque(map(begin, islice(numbers, _OPENED_AHEAD)))
        while ahead:
            begun.append(ahead.popleft())
            ahead.extend(map(begin, islice(numbers, 1)))
            yield begun[-1]

    def _opened(self, number: int) -> Case:
        return opened(self.sources[number], self.options(number))


def _judged(begun: Future[Case], outcome: Survey | Failure, started: float) -> Outcome:
    """The report on what was measured; an error is passed on."""
    if not isinstance(outcome, Survey):
        return outcome
    try:
        return judged(begun.result(), outcome, started)
    except (DoctorError, OSError) as error:  # a tensor that is read once more, for its hash
        return error


def scan_all(
    sources: Sequence[str | os.PathLike[str]],
    options: Options | None = None,
    *,
    executor: Executor | Crew | None = None,
) -> Generator[Outcome, None, None]:
    """Examines several checkpoints; whatever becomes of one, the others are examined.

    On an executor or a Dask cluster, units of the next checkpoints are under way while the last of the earlier are
    measured, and headers are read ahead. Each report is that of :func:`scan`, but for its ``seconds``: those since the
    report before it.

    Args:
        sources: The checkpoints.
        options: How to examine them.
        executor: Who measures, as for :func:`scan`.

    Yields:
        For each source, in order, its report, or the error that :func:`scan` would raise.

    Raises:
        UsageError: If the executor cannot be used, or Dask is not installed.
        ClusterError: If no Dask scheduler answers, or its workers cannot measure.
    """
    chosen = options or Options()
    with hire(executor, chosen.dask, chosen.jobs) as crew:
        yield from Round(sources, lambda _: replace(chosen, dask=None)).outcomes(crew)
