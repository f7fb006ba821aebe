"""A Dask cluster against threads: ``python benchmarks/cluster.py [--scratch DIR] [--rounds N]``.

Workers are single-threaded processes on this machine. The overhead of a unit is the time that thousands of units with
next to nothing in them take, divided by their number. It needs ``pip install 'gemma-doctor[dask]'``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import inputs
from distributed import LocalCluster
from table import race

from gemma_doctor.checkpoint import Checkpoint, open_checkpoint
from gemma_doctor.inspect.cluster import connected
from gemma_doctor.inspect.crew import Crew
from gemma_doctor.inspect.survey import survey

SIZES = (32, 64, 128, 256)  # MiB of a unit
TINY = 500  # units with next to nothing in them


class _Sized(Crew):
    """A crew whose units have a given size."""

    def __init__(self, crew: Crew, nbytes: int) -> None:
        self._crew, self._nbytes = crew, nbytes
        self.submit, self.wait, self.admit = crew.submit, crew.wait, crew.admit  # type: ignore[method-assign]

    @property
    def width(self) -> int:
        """That of the crew itself."""
        return self._crew.width

    def unit_bytes(self, total_bytes: int) -> int:  # noqa: ARG002  # whatever the total
        """The given size."""
        return self._nbytes


def main() -> None:
    """Build the inputs, run everything, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, help="folder for the inputs; kept (default: a temporary one)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each entrant")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        print(*throughput(_two_gigabytes(scratch / "two"), options.rounds), sep="\n")
        print()
        print(*overhead(inputs.many_small(scratch / f"tiny{TINY}.safetensors", TINY), options.rounds), sep="\n")


def throughput(folder: Path, rounds: int) -> Iterator[str]:
    """Rows of GB/s, warm, every entrant in turn."""
    checkpoint = open_checkpoint(folder)
    nbytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    with _workers(1) as one, _workers(2) as two, connected(one) as alone, connected(two) as both:
        entrants = {f"threads, {jobs}": partial(_survey, checkpoint, None, jobs) for jobs in (1, 2)}
        for name, crew in (("Dask, 1 worker", alone), ("Dask, 2 workers", both)):
            for mib in SIZES:
                entrants[f"{name}, units of {mib} MiB"] = partial(_survey, checkpoint, _Sized(crew, mib << 20))
        seconds = race(entrants, rounds)
    yield "| surveyed by | s | GB/s | of as many threads |"
    yield "| --- | ---: | ---: | ---: |"
    for name, taken in seconds.items():
        base = seconds["threads, 2" if "2 w" in name or name.endswith(", 2") else "threads, 1"]
        yield f"| {name} | {taken:.3f} | {nbytes / taken / 1e9:.2f} | {base / taken:.2f} |"


def overhead(file: Path, rounds: int) -> Iterator[str]:
    """Rows of microseconds for each unit of 128 bytes."""
    checkpoint = open_checkpoint(file)
    yield "| units of one tensor of 128 bytes, handed to | us a unit | units/s |"
    yield "| --- | ---: | ---: |"
    with _workers(2) as address, connected(address) as crew, ProcessPoolExecutor(2) as pool:
        for name, its in (("2 Dask workers", crew), ("a process pool of 2", Crew(pool, 2))):
            times = [_timed(checkpoint, _Sized(its, 1)) for _ in range(rounds + 1)][1:]
            each = statistics.median(times) / TINY
            yield f"| {name} | {1e6 * each:,.0f} | {1 / each:,.0f} |"


def _two_gigabytes(folder: Path) -> Path:
    """Two files of 1.1 GB."""
    folder.mkdir(exist_ok=True, parents=True)
    first = inputs.one_gigabyte(folder / "a.safetensors", "BF16")
    second = folder / "b.safetensors"
    if not second.exists():
        second.write_bytes(first.read_bytes().replace(b'"layers.', b'"others.'))
    return folder


@contextmanager
def _workers(number: int) -> Iterator[str]:
    """The scheduler's address of a cluster of single-threaded worker processes."""
    with LocalCluster(n_workers=number, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address


def _survey(checkpoint: Checkpoint, crew: Crew | None, jobs: int | None = None) -> None:
    survey(checkpoint, checkpoint.tensors.values(), crew=crew, jobs=jobs)


def _timed(checkpoint: Checkpoint, crew: Crew) -> float:
    started = time.perf_counter()
    _survey(checkpoint, crew)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
