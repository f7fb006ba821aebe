"""The workers of a Dask cluster as a crew. Importing this loads Dask (the extra ``dask``).

Dask runs a unit again where its worker died (``distributed.scheduler.allowed-failures`` times, 3 by default), also one
that was done and whose result died with it. A result is a few kilobytes: nothing else crosses the network but units.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from pkgutil import resolve_name
from typing import Any, NoReturn

from distributed import Client, KilledWorker, TimeoutError, get_worker  # noqa: A004  # Python 3.10 has several

from gemma_doctor.errors import ClusterError, DoctorError, UsageError
from gemma_doctor.inspect.crew import Crew, Pending
from gemma_doctor.inspect.units import Unit
from gemma_doctor.inspect.witness import Measured, Site, measure_at
from gemma_doctor.version import __version__

__all__ = ["DESERTED_S", "PATIENCE_S", "DaskCrew", "connected"]

PATIENCE_S = 10
"""Seconds to wait for the scheduler, and then for a first worker."""

DESERTED_S = 60
"""Seconds after which a cluster that has lost all its workers is given up."""

_LOOK_S = 5  # seconds after which somebody looks how many workers there are


@contextmanager
def connected(address: str) -> Iterator[DaskCrew]:
    """The workers of the cluster of a scheduler, for as long as the ``with`` block lasts.

    Args:
        address: The scheduler's address, such as ``tcp://scheduler:8786``.

    Raises:
        UsageError: If it is no address.
        ClusterError: If nobody answers in ``PATIENCE_S`` seconds, or a worker cannot measure for this gemma-doctor.
    """
    try:
        client = Client(address, timeout=PATIENCE_S, set_as_default=False)
    except ValueError as error:
        raise UsageError(f"{address} is no address of a Dask scheduler: {error}. An example: tcp://host:8786") from None
    except (OSError, TimeoutError):
        raise ClusterError(
            f"no Dask scheduler answers at {address} within {PATIENCE_S} s. Start one (dask scheduler), or mend the "
            "address."
        ) from None
    with client:
        crew = DaskCrew(client, address)
        crew.refuse_strangers()
        yield crew


def measure_tensors(site: Site, unit: Unit) -> Measured:
    """What a worker runs; an error of it names the worker. Dask's dashboard shows it by this name."""
    try:
        return measure_at(site, unit)
    except DoctorError as error:
        raise type(error)(f"{error} (on the Dask worker {get_worker().address})") from None


class DaskCrew(Crew):
    """All workers of a Dask cluster, also those that come and go meanwhile."""

    def __init__(self, client: Any, address: str) -> None:  # noqa: ANN401  # distributed is not seen by the type checker
        """A crew of all the workers.

        Args:
            client: The connected client.
            address: The scheduler's address, for messages.
        """
        self._client = client
        self._address = address
        self._seen = time.monotonic()
        self._width, self._counted = 1, -math.inf
        self._lost: ClusterError | None = None

    @property
    def width(self) -> int:
        """Threads of all workers, as they were some seconds ago at most."""
        if self._lost is None and time.monotonic() > self._counted + _LOOK_S:
            with suppress(ClusterError):  # submit says it, too
                self._width = max(1, sum(self._workers().values()))
            self._counted = time.monotonic()
        return self._width

    def refuse_strangers(self) -> None:
        """Makes sure that there are workers, and that they run this version of gemma-doctor.

        Raises:
            ClusterError: If not.
        """
        try:
            self._client.wait_for_workers(1, timeout=PATIENCE_S)
        except TimeoutError:
            raise ClusterError(
                f"the Dask scheduler at {self._address} has no workers, and none came within {PATIENCE_S} s. Start "
                f"some: dask worker {self._address}"
            ) from None
        # A function of the standard library: workers without gemma-doctor have it, too.
        found = self._client.run(resolve_name, "gemma_doctor.version:__version__", on_error="return")
        self._refuse({address: _other_version(its) for address, its in found.items() if its != __version__})

    def admit(self, site: Site) -> None:
        """Makes sure that every worker sees the files of ``site``, by their sizes.

        Raises:
            ClusterError: If one does not, or the cluster is lost.
        """
        self._refuse_lost()
        try:
            seen = self._client.run(site.unseen, on_error="ignore")  # a worker that dies meanwhile is Dask's business
        except OSError:
            self._give_up(self._gone())
        faults = {address: f"does not see what this machine sees: {what}" for address, what in seen.items() if what}
        self._refuse(faults)

    def submit(self, site: Site, unit: Unit) -> Pending:
        """Hands out a unit; ``site`` is that of its files.

        Raises:
            ClusterError: If the cluster is lost.
        """
        self._refuse_lost()
        # Two scans of one file are two computations. Dask's own executor takes a result that dies for an exception.
        future: Pending = self._client.submit(measure_tensors, site, unit, pure=False)
        return future

    def wait(self, future: Any) -> Measured:  # noqa: ANN401  # what submit gave, which the type checker does not know
        """The result of a unit.

        Raises:
            ClusterError: If its workers die again and again, or none is left, or the scheduler is.
            DoctorError: What measuring it raised.
        """
        self._seen = time.monotonic()
        try:
            return self._patiently(future)
        except KilledWorker as error:
            raise ClusterError(
                f"{error.allowed_failures + 1} Dask workers died of the same unit of work, the last of them "
                f"{error.last_worker.address}. Look at its log and its memory limit (dask worker --memory-limit)."
            ) from None
        except CancelledError:
            self._give_up(self._gone())
        except ModuleNotFoundError as error:
            raise ClusterError(f"a Dask worker that came later {_other_version(error)}") from None

    def _patiently(self, future: Any) -> Measured:  # noqa: ANN401  # as above
        """The result, however long it takes, as long as there are workers."""
        while True:
            try:
                measured: Measured = future.result(timeout=_LOOK_S)
            except TimeoutError:
                if future.status == "error":  # it is what measuring raised
                    raise
                self._refuse_desertion()
            else:
                return measured

    def _refuse_desertion(self) -> None:
        """An error if there has been no worker for long."""
        if self._workers():
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > DESERTED_S:
            self._give_up(
                f"the Dask scheduler at {self._address} has had no workers for {DESERTED_S} s. Start some (dask worker "
                f"{self._address}); scan again."
            )

    def _give_up(self, why: str) -> NoReturn:
        """An error, now and whenever this crew is asked again: the next source need not find it out once more."""
        self._lost = ClusterError(why)
        raise self._lost from None

    def _refuse_lost(self) -> None:
        """An error if the cluster has been given up, or its scheduler does not answer."""
        if self._lost is not None:
            raise ClusterError(str(self._lost))
        if self._client.status != "running":
            self._give_up(self._gone())

    def _workers(self) -> dict[str, int]:
        """Threads of each worker of this moment; an error if the scheduler does not answer."""
        try:
            threads: dict[str, int] = self._client.nthreads()
        except OSError:
            self._give_up(self._gone())
        return threads

    def _gone(self) -> str:
        return f"the Dask scheduler at {self._address} was lost. Start it again; scan again."

    def _refuse(self, faults: dict[str, str]) -> None:
        """An error that names the first of some workers, and says how many there are."""
        for address in sorted(faults):
            more = f" ({len(faults) - 1:,} more cannot be used either)" if len(faults) > 1 else ""
            raise ClusterError(f"the Dask worker {address} {faults[address]}{more}")


def _other_version(found: str | Exception) -> str:
    has = f"runs gemma-doctor {found}" if isinstance(found, str) else f"has no gemma-doctor ({found})"
    return f"{has}, and this is {__version__}. Install it there: pip install gemma-doctor=={__version__}"
