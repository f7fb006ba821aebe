"""Dask clusters of real processes on this machine, and what tests plant in their workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster

__all__ = ["another_version", "apart", "cluster_of", "forget_gemma_doctor", "holders", "kill", "own_pid", "slow_down"]

dask.config.set({"distributed.worker.multiprocessing-method": "spawn"})


@contextmanager
def cluster_of(workers: int, silence: int = 60) -> Iterator[Any]:  # distributed is not seen by the checker
    """A cluster of single-threaded worker processes, each with a nanny that starts it again.

    Args:
        workers: How many.
        silence: Level below which Dask logs nothing.
    """
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        silence_logs=silence,
    ) as cluster:
        yield cluster


@contextmanager
def apart(workers: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A cluster whose scheduler is a process of its own: its address, and the process."""
    words = [sys.executable, __file__, str(workers)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def own_pid() -> int:
    """In a worker: its process."""
    return os.getpid()


def in_workers(address: str, function: Any, *arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    """What each worker returns."""
    with Client(address, set_as_default=False) as client:
        answers: dict[str, Any] = client.run(function, *arguments)
        return answers


def slow_down(seconds: float) -> None:
    """In a worker: every piece takes so much longer."""
    from gemma_doctor.inspect import survey, units, witness  # noqa: PLC0415  # the worker's

    fast = units.measure_unit

    def slow(files: Any, unit: units.Unit) -> Any:  # noqa: ANN401
        time.sleep(seconds * len(unit))
        return fast(files, unit)

    witness.measure_unit = survey.measure_unit = slow  # type: ignore[attr-defined]  # who calls it here, or there


def another_version() -> None:
    """In a worker: it runs another version."""
    from gemma_doctor import version  # noqa: PLC0415  # the worker's

    version.__version__ = "0.0.1"


def forget_gemma_doctor() -> None:
    """In a worker: it has none."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "gemma_doctor"]:
        del sys.modules[name]
    sys.modules["gemma_doctor"] = None  # type: ignore[assignment]  # what Python takes for "there is none"


def holders(client: Any) -> list[str]:  # noqa: ANN401
    """Addresses of the workers that compute something at this moment."""
    return [address for address, keys in client.processing().items() if keys]


def kill(pid: int) -> None:
    """End a process at once, and wait until it has."""
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text("utf-8"):
        time.sleep(0.01)


def _serve(workers: int) -> None:
    """A cluster, until this process ends; its address comes first on standard output."""
    with cluster_of(workers) as cluster:
        sys.stdout.write(f"{cluster.scheduler_address}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
