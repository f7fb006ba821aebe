"""A Dask cluster against threads: ``python benchmarks/cluster.py [--scratch DIR] [--rounds N]``.

Prints a section in Markdown: it takes the place of "Dask cluster" in ``benchmarks/elsewhere.md``, and its last part,
"On paper", that of the same in ``docs/scale.md``. Workers are single-threaded processes on this machine. It needs
``pip install 'gemma-doctor[dask]'``, 5 GB of disk, and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import inputs
from distributed import LocalCluster
from table import race

import gemma_doctor
from gemma_doctor.checkpoint import Checkpoint, open_checkpoint
from gemma_doctor.inspect.cluster import DaskCrew, connected
from gemma_doctor.inspect.crew import Crew
from gemma_doctor.inspect.line import AHEAD
from gemma_doctor.inspect.orders import Order
from gemma_doctor.inspect.survey import survey
from gemma_doctor.inspect.units import cut
from gemma_doctor.inspect.witness import Site, measure_at

SIZES = (32, 64, 128, 256)  # MiB of a unit
TINY = 500  # units with next to nothing in them
SMALL = 20  # sources of 67 MB
STORAGE = 10e9  # bytes/s of the shared storage on paper


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
    """Build the inputs, run everything, print the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, help="folder for the inputs; kept (default: a temporary one)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each entrant")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        print(*_head(options.rounds), sep="\n")
        seconds, nbytes = throughput(_two_gigabytes(scratch / "two"), options.rounds)
        print(*_throughput_table(seconds, nbytes), sep="\n", flush=True)
        each = overhead(inputs.many_small(scratch / f"tiny{TINY}.safetensors", TINY), options.rounds)
        print(*_overhead_table(each), sep="\n", flush=True)
        print(*_sources_table(sources(_small(scratch / "small"), options.rounds)), sep="\n", flush=True)
        print(*on_paper(nbytes / seconds["threads, 1"], 1 / each["2 Dask workers"]), sep="\n")


def _head(rounds: int) -> Iterator[str]:
    yield "## Dask cluster"
    yield ""
    yield (
        f"`python benchmarks/cluster.py --rounds {rounds}`, {dt.datetime.now(dt.timezone.utc).date()}, distributed "
        f"{version('distributed')}, {len(os.sched_getaffinity(0))} cores, "
        f"load average {os.getloadavg()[0]:.1f} before it: medians of {rounds}, warm."
    )
    yield "Client, scheduler and workers share the cores."
    yield ""


def throughput(folder: Path, rounds: int) -> tuple[dict[str, float], int]:
    """Seconds of each entrant, warm, in turns; and the bytes."""
    checkpoint = open_checkpoint(folder)
    nbytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    with _workers(1) as one, _workers(2) as two, connected(one) as alone, connected(two) as both:
        entrants = {f"threads, {jobs}": partial(_survey, checkpoint, None, jobs) for jobs in (1, 2)}
        entrants["Dask, 1 worker, units as a scan has them"] = partial(_survey, checkpoint, alone)
        entrants["Dask, 2 workers, units as a scan has them"] = partial(_survey, checkpoint, both)
        for mib in SIZES:
            entrants[f"Dask, 2 workers, units of {mib} MiB"] = partial(_survey, checkpoint, _Sized(both, mib << 20))
        return race(entrants, rounds), nbytes


def _throughput_table(seconds: dict[str, float], nbytes: int) -> Iterator[str]:
    yield f"| {nbytes / 1e9:.1f} GB in bfloat16, surveyed by | s | GB/s | of as many threads |"
    yield "| --- | ---: | ---: | ---: |"
    for name, taken in seconds.items():
        base = seconds["threads, 1" if name == "threads, 1" or "1 w" in name else "threads, 2"]
        yield f"| {name} | {taken:.3f} | {nbytes / taken / 1e9:.2f} | {base / taken:.2f} |"
    yield ""


def overhead(file: Path, rounds: int) -> dict[str, float]:
    """Seconds for each unit of 128 bytes, and for a task of Dask that does nothing."""
    checkpoint = open_checkpoint(file)
    with _workers(2) as address, connected(address) as crew, ProcessPoolExecutor(2) as pool:
        entrants: dict[str, Callable[[], object]] = {
            "2 Dask workers": partial(_survey, checkpoint, _Sized(crew, 1)),
            "2 Dask workers: tasks that do nothing, as many under way": partial(_nothing, crew),
            "a process pool of 2": partial(_survey, checkpoint, _Sized(Crew(pool, 2), 1)),
            "nobody: open, measure, look whether it changed": partial(_measure_here, checkpoint),
        }
        return {name: taken / TINY for name, taken in race(entrants, rounds).items()}


def _nothing(crew: DaskCrew) -> None:
    """What Dask itself takes."""
    client = crew._client  # noqa: SLF001
    work = (client.submit(abs, number, pure=False) for number in range(TINY))
    under_way = deque(islice(work, AHEAD * crew.width))
    while under_way:
        under_way.popleft().result()
        under_way.extend(islice(work, 1))


def _measure_here(checkpoint: Checkpoint) -> None:
    """What a worker does, without a worker."""
    site = Site.of(checkpoint, (tensor.file for tensor in checkpoint.tensors.values()))
    for unit in cut(checkpoint.tensors.values(), 1):
        measure_at(site, unit)


def _overhead_table(each: dict[str, float]) -> Iterator[str]:
    yield f"| {TINY} units of one tensor of 128 bytes, handed to | us a unit | units/s |"
    yield "| --- | ---: | ---: |"
    for name, taken in each.items():
        yield f"| {name} | {1e6 * taken:,.0f} | {1 / taken:,.0f} |"
    yield ""


def sources(files: list[Path], rounds: int) -> dict[str, float]:
    """Seconds for several checkpoints of one unit each, one scan after the other and in one queue."""
    with _workers(2) as address, connected(address) as crew:
        return race(
            {
                "one scan after the other": lambda: [gemma_doctor.scan(file, executor=crew) for file in files],
                "in one queue (`scan A B …`)": lambda: list(gemma_doctor.scan_all(files, executor=crew)),
            },
            rounds,
        )


def _sources_table(seconds: dict[str, float]) -> Iterator[str]:
    yield f"| {SMALL} sources of one unit on 2 Dask workers | s | GB/s |"
    yield "| --- | ---: | ---: |"
    for name, taken in seconds.items():
        yield f"| {name} | {taken:.2f} | {SMALL * (1 << 26) / taken / 1e9:.2f} |"
    yield ""


def on_paper(rate: float, handed_out: float) -> Iterator[str]:
    """What the figures make of larger clusters.

    Args:
        rate: Bytes/s of a thread.
        handed_out: Units/s of the scheduler.
    """
    yield "### On paper"
    yield ""
    yield (
        f"With N threads of r bytes/s, units of U bytes, a scheduler of s units/s and storage of B bytes/s a scan "
        f"runs at\nmin(N r, s U, B). Measured above: r = {rate / 1e9:.2f} GB/s from memory, s = {handed_out:,.0f} "
        f"(all on one machine, so a low figure).\nAssumed: B = {STORAGE / 1e9:.0f} GB/s."
    )
    yield ""
    yield "| what | N | U, MiB | units | N r, GB/s | s U, GB/s | storage takes | scheduler takes | in all | bound by |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    for what, count, nbytes in (("one checkpoint of 1.4 TB", 1, 1.4e12), ("1,000 repositories of 10 GB", 1000, 1e10)):
        for threads in (8, 16, 64, 256):
            with ThreadPoolExecutor(1) as nobody:
                unit = Crew(nobody, threads).unit_bytes(int(nbytes))
            units = count * -(-int(nbytes) // unit)
            times = {
                "threads": count * nbytes / (threads * rate),
                "scheduler": units / handed_out,
                "storage": count * nbytes / STORAGE,
            }
            bound = max(times, key=lambda name: times[name])
            yield (
                f"| {what} | {threads} | {unit >> 20} | {units:,} | {threads * rate / 1e9:.0f} | "
                f"{handed_out * unit / 1e9:.1f} | {_spelled(times['storage'])} | {_spelled(times['scheduler'])} | "
                f"{_spelled(times[bound])} | {bound} |"
            )


def _spelled(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 180 else f"{seconds / 60:.0f} min"  # three minutes


def _two_gigabytes(folder: Path) -> Path:
    """Two files of 1.1 GB."""
    folder.mkdir(exist_ok=True, parents=True)
    first = inputs.one_gigabyte(folder / "a.safetensors", "BF16")
    second = folder / "b.safetensors"
    if not second.exists():
        second.write_bytes(first.read_bytes().replace(b'"layers.', b'"others.'))
    return folder


def _small(folder: Path) -> list[Path]:
    """Files of 67 MB."""
    folder.mkdir(exist_ok=True, parents=True)
    first = inputs.matrices(folder / "0.safetensors", 8, "BF16")
    rest = [folder / f"{number}.safetensors" for number in range(1, SMALL)]
    for path in rest:
        if not path.exists():
            path.write_bytes(first.read_bytes())
    return [first, *rest]


@contextmanager
def _workers(number: int) -> Iterator[str]:
    """The scheduler's address of a cluster of single-threaded worker processes."""
    with LocalCluster(n_workers=number, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address


def _survey(checkpoint: Checkpoint, crew: Crew | None, jobs: int | None = None) -> None:
    survey(Order.of(checkpoint, checkpoint.tensors.values()), crew=crew, jobs=jobs)


if __name__ == "__main__":
    main()
