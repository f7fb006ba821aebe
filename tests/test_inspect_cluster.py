"""A scan on a Dask cluster of real processes: the same report, whoever dies, or one sentence that says why not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import clusters
import dask
import pytest
from checkpoint_bytes import content_file
from command import PLAIN, call, run
from distributed import Client
from test_inspect_survey import Watcher, every_dtype

import gemma_doctor
from gemma_doctor import Options, Report
from gemma_doctor.doctor import Round
from gemma_doctor.errors import ChangedError, ClusterError, UsageError
from gemma_doctor.inspect import cluster as room
from gemma_doctor.inspect.cluster import connected
from gemma_doctor.inspect.crew import Crew

# Dask's processes and sockets outlive the calls that end them by a moment.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a cluster of two workers that nobody harms."""
    with clusters.cluster_of(2) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards, cut into some dozens of units."""
    monkeypatch.setattr(Crew, "unit_bytes", lambda *_: 1 << 17)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "m-0-of-2.safetensors").write_bytes(content_file(every_dtype()))
    tensors = {f"{n:02}": ("BF16", (1 << 16,), bytes([n, 60]) * (1 << 16)) for n in range(40)}
    (folder / "m-1-of-2.safetensors").write_bytes(content_file(dict(tensors)))
    return folder


def timeless(report: Report) -> Report:
    return replace(report, seconds=0)


@dataclass(slots=True)
class Reaper(Watcher):
    """Kills, at its third step, a worker that computes at that moment."""

    client: Any = None
    pids: dict[str, int] = field(default_factory=dict)
    killed: list[int] = field(default_factory=list)

    def advance(self, nbytes: int) -> None:
        """Count, and kill once."""
        Watcher.advance(self, nbytes)
        if len(self.steps) == 3:
            victim = clusters.holders(self.client)[0]
            clusters.kill(self.pids[victim])
            self.killed.append(self.pids[victim])


@contextmanager
def reaping(address: str, seconds: float) -> Iterator[Reaper]:
    """A reaper, and workers that take so long for every piece."""
    clusters.in_workers(address, clusters.slow_down, seconds)
    with Client(address, set_as_default=False) as client:
        yield Reaper(client=client, pids=client.run(os.getpid))


@pytest.mark.parametrize("unit_bytes", [1 << 14, 1 << 20])
def test_the_report_is_that_of_threads(
    scheduler: str, model: Path, monkeypatch: pytest.MonkeyPatch, unit_bytes: int
) -> None:
    monkeypatch.setattr(Crew, "unit_bytes", lambda *_: unit_bytes)
    watcher = Watcher()
    found = gemma_doctor.scan(model, Options(dask=scheduler), watcher)
    assert timeless(found) == timeless(gemma_doctor.scan(model))
    assert watcher.total == [sum(watcher.steps)]


def test_the_executor_of_a_client_will_do(scheduler: str, model: Path) -> None:
    with Client(scheduler, set_as_default=False) as client:
        found = gemma_doctor.scan(model, executor=client.get_executor())
    assert timeless(found) == timeless(gemma_doctor.scan(model))


def test_a_worker_killed_with_work_in_its_hands_loses_nothing(model: Path) -> None:
    with clusters.cluster_of(2) as cluster:
        address = cluster.scheduler_address
        with reaping(address, 0.05) as reaper:
            found = gemma_doctor.scan(model, Options(dask=address), reaper)
        assert len(reaper.killed) == 1
        assert reaper.killed[0] not in clusters.in_workers(address, os.getpid).values()
    assert timeless(found) == timeless(gemma_doctor.scan(model))
    assert reaper.total == [sum(reaper.steps)]


def test_workers_that_die_again_and_again_are_an_error(model: Path) -> None:
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), clusters.cluster_of(1) as cluster:
        words = r"^1 Dask workers died of the same .* the last of them tcp://127"
        with reaping(cluster.scheduler_address, 0.05) as reaper, pytest.raises(ClusterError, match=words):
            gemma_doctor.scan(model, Options(dask=cluster.scheduler_address), reaper)


def test_a_cluster_that_loses_all_its_workers_is_given_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "DESERTED_S", 1)
    monkeypatch.setattr(room, "_LOOK_S", 0.2)
    with clusters.cluster_of(1) as cluster:
        clusters.in_workers(cluster.scheduler_address, clusters.slow_down, 0.05)
        with pytest.raises(ClusterError, match=r"has had no workers for 1 s\. Start some \(dask worker tcp://"):
            gemma_doctor.scan(model, Options(dask=cluster.scheduler_address), Watcher(lambda: cluster.scale(0)))


def test_a_scheduler_that_is_lost_is_an_error(model: Path) -> None:
    with clusters.cluster_of(1) as cluster:
        clusters.in_workers(cluster.scheduler_address, clusters.slow_down, 0.05)
        with pytest.raises(ClusterError, match=r"^the Dask scheduler at tcp://.* was lost"):
            gemma_doctor.scan(model, Options(dask=cluster.scheduler_address), Watcher(cluster.close))


def test_a_scheduler_that_is_lost_ends_all_that_are_left_at_once(model: Path) -> None:
    """The first finds it out, and nobody waits for it again."""
    with clusters.cluster_of(1) as cluster:
        address = cluster.scheduler_address
        clusters.in_workers(address, clusters.slow_down, 0.05)
        with connected(address) as crew:
            watcher = Watcher(cluster.close)
            found = list(Round([model] * 20, lambda _: Options(), lambda _: nullcontext(watcher)).outcomes(crew))
    assert [str(error).partition(" was lost")[0] for error in found] == [f"the Dask scheduler at {address}"] * 20
    assert {type(error) for error in found} == {ClusterError}


# Clusters that cannot be used


def test_no_scheduler_is_said_within_the_stated_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PATIENCE_S", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(ClusterError, match=f"no Dask scheduler answers at {address} within 1 s"):
        gemma_doctor.scan(model, Options(dask=address))
    assert time.monotonic() - started < 8


def test_no_address_is_a_usage_error(model: Path) -> None:
    with pytest.raises(UsageError, match="scheduler is no address of a Dask scheduler"):
        gemma_doctor.scan(model, Options(dask="scheduler"))


def test_no_workers_are_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PATIENCE_S", 1)
    with (
        clusters.cluster_of(0) as cluster,
        pytest.raises(ClusterError, match=r"has no workers, and none came within 1 s\. Start some: dask worker"),
    ):
        gemma_doctor.scan(model, Options(dask=cluster.scheduler_address))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (clusters.another_version, r"runs gemma-doctor 0\.0\.1, and this is "),
        (clusters.forget_gemma_doctor, "has no gemma-doctor .*, and this is "),
    ],
)
def test_workers_of_another_version_are_named(model: Path, fault: Any, words: str) -> None:  # noqa: ANN401
    with clusters.cluster_of(1) as cluster:
        clusters.in_workers(cluster.scheduler_address, fault)
        with pytest.raises(ClusterError, match=rf"^the Dask worker tcp://127\.0\.0\.1:\d+ {words}"):
            gemma_doctor.scan(model, Options(dask=cluster.scheduler_address))


def test_a_worker_that_does_not_see_the_files_is_named(
    scheduler: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process's folder is not the workers'."""
    monkeypatch.chdir(model.parent)
    words = (
        r"^the Dask worker tcp://.* not see .*: /proc/self/cwd/model/m-0-of-2\.safetensors: No such file .*1 more can"
    )
    with pytest.raises(ClusterError, match=words):
        gemma_doctor.scan("/proc/self/cwd/model", Options(dask=scheduler))


def test_an_error_of_a_worker_names_it(scheduler: str, model: Path) -> None:
    def lose() -> None:
        (model / "m-1-of-2.safetensors").unlink()

    with pytest.raises(ChangedError, match=r"^m-1-of-2\.safetensors: .* it is gone.* \(on the Dask worker tcp://127"):
        gemma_doctor.scan(model, Options(dask=scheduler), Watcher(lose))


# On the command line


def test_several_sources_on_a_cluster_in_a_process_of_its_own(scheduler: str, model: Path) -> None:
    alone = json.loads(run("scan", model, "--json", "-").out)
    done = run(
        "scan", model, model.parent / "absent", model / "m-0-of-2.safetensors", "--dask", scheduler, "--json", "-"
    )
    reports = json.loads(done.out)
    assert done.code == 2
    assert [report["complete"] for report in reports] == [alone["complete"], False, alone["complete"]]
    assert (reports[0]["tensors"], reports[0]["findings"]) == (alone["tensors"], alone["findings"])
    assert done.err.startswith(f"gemma-doctor: {model.parent / 'absent'}: no such file or folder. Give a ")
    assert done.err.count("\n") == 1


def test_threads_and_workers_are_too_much(model: Path) -> None:
    done = call("scan", model, "--jobs", "2", "--dask", "tcp://127.0.0.1:1")
    assert (done.code, done.out) == (2, "")
    assert "--jobs counts threads of this process" in done.err


def test_dask_that_is_not_installed_is_said(model: Path, tmp_path: Path) -> None:
    (tmp_path / "distributed.py").write_text("raise ModuleNotFoundError('gone', name='distributed')")
    done = run("scan", model, "--dask", "tcp://127.0.0.1:1", env={"PYTHONPATH": str(tmp_path)})
    assert (done.code, done.out) == (2, "")
    assert done.err == "gemma-doctor: Dask is needed, and distributed is missing: pip install 'gemma-doctor[dask]'\n"


@pytest.mark.parametrize("dask_too", [False, True])
def test_an_interrupt_exits_with_130_and_leaves_nothing(model: Path, dask_too: bool) -> None:  # noqa: FBT001
    with clusters.cluster_of(1) as cluster:
        address = cluster.scheduler_address
        clusters.in_workers(address, clusters.slow_down, 0.3)
        code = (
            "import clusters; from gemma_doctor.cli import main; clusters.slow_down(0.3); "
            "from gemma_doctor.inspect import units; from gemma_doctor.inspect.crew import Crew; "
            "Crew.unit_bytes = lambda *_: 1 << 17; "
            "units.UNIT_BYTES = 1 << 17; print('ready', flush=True); main()"
        )
        extra = ["--dask", address] if dask_too else ["--jobs", "1"]
        with (
            subprocess.Popen(
                [sys.executable, "-c", code, "scan", str(model), *extra, "--json", str(model / "out.json")],
                env={**os.environ, **PLAIN, "PYTHONPATH": str(Path(__file__).parent)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process,
            Client(address, set_as_default=False) as client,
        ):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            while dask_too and not clusters.holders(client):
                time.sleep(0.02)
            time.sleep(1 if dask_too else 3)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
            assert (process.returncode, out, err) == (130, "", "gemma-doctor: interrupted\n")
            deadline = time.monotonic() + 20
            while client.run_on_scheduler(_tasks) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert client.run_on_scheduler(_tasks) == 0
    assert not (model / "out.json").exists()


def _tasks(dask_scheduler: Any) -> int:  # noqa: ANN401
    return len(dask_scheduler.tasks)
