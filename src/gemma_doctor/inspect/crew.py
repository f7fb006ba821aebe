"""Who measures the units of a survey: any executor of ``concurrent.futures``, and how much it is given at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any, Protocol

from gemma_doctor.cores import cores
from gemma_doctor.errors import ClusterError, UsageError
from gemma_doctor.inspect.units import Unit
from gemma_doctor.inspect.witness import Measured, Site, measure_at

__all__ = ["LARGEST_UNIT", "SMALLEST_UNIT", "Crew", "Pending", "hire"]

LARGEST_UNIT = 256 << 20
"""Bytes of a unit for a crew whose overhead per unit is that of a network; a dead worker loses no more a thread."""

SMALLEST_UNIT = 128 << 20
"""The same the other way: handing a unit out takes 5 ms on Dask, in which a thread measures some 30 MB."""

_SHARES = 8  # units that each place should have, so that the last ones end together


class Pending(Protocol):
    """A unit that somebody measures: a ``Future``, of whatever library."""

    def cancel(self) -> object:
        """Takes it back, if nobody has begun with it."""


class Crew:
    """An executor that measures units.

    Law: the figures, their order and the first error are those of one thread, whatever the executor.
    """

    def __init__(self, executor: Executor, width: int) -> None:
        """A crew.

        Args:
            executor: Runs picklable functions, in whatever order and place; whoever made it ends it.
            width: How many units it measures at the same time.
        """
        self._executor = executor
        self._width = width

    @property
    def width(self) -> int:
        """How many units it measures at the same time."""
        return self._width

    def unit_bytes(self, total_bytes: int) -> int:
        """How large the units of so many bytes should be: several for every place, but none tiny."""
        return min(LARGEST_UNIT, max(SMALLEST_UNIT, total_bytes // (_SHARES * max(1, self.width))))

    def admit(self, site: Site) -> None:
        """Makes sure, as far as that can be known before, that all of it sees the files of ``site``.

        Raises:
            ClusterError: If somebody does not.
        """

    def submit(self, site: Site, unit: Unit) -> Pending:
        """Hands out a unit; ``site`` is that of its files.

        Raises:
            ClusterError: If nobody takes it.
        """
        try:
            return self._executor.submit(measure_at, site, unit)
        except BrokenExecutor as error:
            raise _stopped(error) from None

    def wait(self, future: Any) -> Measured:  # noqa: ANN401  # the type checker does not know all their libraries
        """The result of a unit.

        Args:
            future: What :meth:`submit` gave.

        Raises:
            ClusterError: If nobody is there who measures it.
            DoctorError: What measuring it raised.
        """
        try:
            measured: Measured = future.result()
        except (BrokenExecutor, CancelledError) as error:
            raise _stopped(error) from None
        return measured


def _stopped(error: BaseException) -> ClusterError:
    return ClusterError(f"the executor stopped before everything was measured: {error!r}. Scan again.")


def hire(
    executor: Executor | Crew | None, address: str | None, jobs: int | None = None
) -> AbstractContextManager[Crew | None]:
    """The crew that a scan was asked to use; None for the threads of this process.

    Args:
        executor: An executor or a crew, which stays its owner's.
        address: Address of a Dask scheduler.
        jobs: How many units the executor measures at once; None for as many as there are cores here.

    Raises:
        UsageError: If there are two of them, or Dask is not installed.
        ClusterError: If the scheduler or its workers cannot be used.
    """
    if executor is not None and address is not None:
        raise UsageError("an executor and a Dask scheduler are given: a scan uses one of them")
    if address is not None:
        return _cluster(address)
    if executor is None or isinstance(executor, Crew):
        return nullcontext(executor)
    return nullcontext(Crew(executor, jobs or cores()))


@contextmanager
def _cluster(address: str) -> Iterator[Crew]:
    """The workers of a Dask cluster; Dask is loaded here and nowhere before."""
    try:
        room = import_module("gemma_doctor.inspect.cluster")
    except ModuleNotFoundError as error:
        raise UsageError(f"Dask is needed, and {error.name} is missing: pip install 'gemma-doctor[dask]'") from error
    with room.connected(address) as crew:
        yield crew
