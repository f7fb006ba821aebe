"""One pass over the bytes: from headers to ``{name: TensorStats}``, on the threads of this process or on any executor.

The work is cut into units (:mod:`gemma_doctor.inspect.units`), of which a bounded number is under way at any moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from itertools import islice

from gemma_doctor.checkpoint import Checkpoint, open_bytes
from gemma_doctor.cores import cores
from gemma_doctor.inspect import units
from gemma_doctor.inspect.crew import Crew
from gemma_doctor.inspect.line import AHEAD, in_turn
from gemma_doctor.inspect.orders import Order, Survey, UnitResults
from gemma_doctor.inspect.units import cut, measure_unit
from gemma_doctor.records import Progress
from gemma_doctor.tensors import TensorInfo

__all__ = ["Survey", "survey"]


def survey(
    order: Order, *, jobs: int | None = None, crew: Crew | None = None, progress: Progress | None = None
) -> Survey:
    """Measures tensors to their last element.

    Args:
        order: Which ones, of which checkpoint.
        jobs: Threads; None for one per core that this process may use. A crew has its own.
        crew: Who measures, if not threads of this process. The result is the same.
        progress: Who is told how far it is.

    Raises:
        ChangedError: If a file changes meanwhile; nothing measured then counts.
        CheckpointError: If a file cannot be read.
        ClusterError: If the crew fails.
    """
    if crew is None:
        with closing(_by_threads(order.checkpoint, order.wanted, jobs)) as measured:
            return order.gathered(measured, progress)
    known: Future[Order] = Future()
    known.set_result(order)
    (outcome,) = in_turn([known], crew, lambda _: nullcontext(progress))
    if isinstance(outcome, Survey):
        return outcome
    raise outcome


def _by_threads(
    checkpoint: Checkpoint, wanted: list[TensorInfo], jobs: int | None
) -> Generator[UnitResults, None, None]:
    """Units and their records, in order, measured by threads of this process that share the open files."""
    with open_bytes(checkpoint) as files, ThreadPoolExecutor(threads := jobs or files.threads(cores())) as pool:
        work = cut(wanted, units.UNIT_BYTES)
        under_way = deque((unit, pool.submit(measure_unit, files, unit)) for unit in islice(work, AHEAD * threads))
        try:
            while under_way:
                unit, future = under_way.popleft()
                results = future.result()
                under_way.extend((unit, pool.submit(measure_unit, files, unit)) for unit in islice(work, 1))
                yield unit, results
        except BaseException:  # Ctrl-C as well: the threads of the pool may wait for a server
            files.abandon()
            raise
        finally:
            for _, future in under_way:
                future.cancel()
