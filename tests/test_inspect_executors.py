"""A survey on any executor: the figures, their order and the first error are those of one thread."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_bytes import content_file
from hypothesis import given
from hypothesis import strategies as st
from test_inspect_survey import Watcher, every_dtype, open_files

import gemma_doctor
from gemma_doctor import Options
from gemma_doctor.checkpoint import Checkpoint, open_checkpoint
from gemma_doctor.errors import ChangedError, ClusterError, UsageError
from gemma_doctor.inspect import crew as hiring
from gemma_doctor.inspect import units
from gemma_doctor.inspect.crew import Crew, hire
from gemma_doctor.inspect.orders import Order
from gemma_doctor.inspect.survey import Survey, survey
from gemma_doctor.inspect.witness import Site, Witness, measure_at


class Shuffled(Executor):
    """Runs what it was given only when somebody waits, in an order of its own."""

    def __init__(self, order: Callable[[int], int]) -> None:
        self._order = order
        self._waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.most = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Keep it for later."""
        future = _Lazy(self)
        self._waiting.append((future, lambda: fn(*args, **kwargs)))
        self.most = max(self.most, len(self._waiting))
        return future

    def run_until(self, wanted: Future[Any]) -> None:
        """Run the waiting in order until one of them is done."""
        while not wanted.done():
            future, work = self._waiting.pop(self._order(len(self._waiting)))
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001  # as every executor does
                future.set_exception(error)

    @property
    def left(self) -> int:
        """How many it has been given and were not cancelled."""
        return sum(not future.cancelled() for future, _ in self._waiting)


class _Lazy(Future[Any]):
    def __init__(self, owner: Shuffled) -> None:
        super().__init__()
        self._owner = owner

    def result(self, timeout: float | None = None) -> Any:  # noqa: ANN401
        self._owner.run_until(self)
        return super().result(timeout)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two shards with every dtype in every shape, some time old."""
    folder = tmp_path_factory.mktemp("model")
    content = list(every_dtype().items())
    for number, part in enumerate((content[:50], content[50:])):
        (folder / f"m-{number}-of-2.safetensors").write_bytes(content_file(dict(part)))
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> Survey:
    return survey(Order.of(checkpoint, checkpoint.tensors.values()), jobs=1)


def by(executor: Executor, width: int, checkpoint: Checkpoint, unit_bytes: int = 3000) -> Survey:
    """The survey of a crew whose units are small."""
    crew = Crew(executor, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Crew, "unit_bytes", lambda *_: unit_bytes)
        patch.setattr(units, "PIECE_COST", 16)
        return survey(Order.of(checkpoint, checkpoint.tensors.values()), crew=crew)


@given(seed=st.integers(0, 2**32), width=st.integers(1, 40), unit_bytes=st.sampled_from([1, 500, 3000, 1 << 20]))
def test_no_order_and_no_chunking_changes_a_figure(
    checkpoint: Checkpoint, reference: Survey, seed: int, width: int, unit_bytes: int
) -> None:
    executor = Shuffled(random.Random(seed).randrange)
    found = by(executor, width, checkpoint, unit_bytes)
    assert (found, list(found.stats)) == (reference, list(reference.stats))
    assert executor.most <= 4 * width


def test_the_last_first_changes_no_figure(checkpoint: Checkpoint, reference: Survey) -> None:
    assert by(Shuffled(lambda waiting: waiting - 1), 10, checkpoint) == reference


@pytest.mark.parametrize("executor", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_threads_and_processes_give_the_same(
    checkpoint: Checkpoint, reference: Survey, executor: Callable[[int], Executor]
) -> None:
    with executor(2) as pool:
        assert by(pool, 2, checkpoint, 100_000) == reference


def test_a_report_is_the_same_and_relative_paths_hold(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with ProcessPoolExecutor(1) as pool:
        pool.submit(os.getcwd).result()  # it lives now, in the folder of before
        monkeypatch.chdir(checkpoint.root.parent)
        found = gemma_doctor.scan(checkpoint.root.name, executor=pool)
    here = gemma_doctor.scan(checkpoint.root.name)
    assert replace(found, seconds=0) == replace(here, seconds=0)


def test_an_executor_that_dies_is_an_error_and_no_report(checkpoint: Checkpoint) -> None:
    with ProcessPoolExecutor(1) as pool:
        pool.submit(os._exit, 3)
        with pytest.raises(ClusterError, match="the executor stopped before everything was measured: BrokenProcess"):
            by(pool, 1, checkpoint)


def test_an_executor_and_a_cluster_are_too_much() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(UsageError, match="a scan uses one of them"):
        hire(pool, "tcp://127.0.0.1:1")


def test_units_are_several_for_every_place_and_neither_tiny_nor_huge() -> None:
    with ThreadPoolExecutor(1) as pool:
        sizes = [Crew(pool, width).unit_bytes(total << 30) for width, total in ((1, 1000), (16, 24), (16, 1), (1, 0))]
    assert sizes == [hiring.LARGEST_UNIT, 192 << 20, hiring.SMALLEST_UNIT, hiring.SMALLEST_UNIT]


def test_an_interrupt_cancels_what_is_under_way(checkpoint: Checkpoint) -> None:
    executor = Shuffled(lambda _: 0)

    def interrupt() -> None:
        raise KeyboardInterrupt

    open_before = open_files()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Crew, "unit_bytes", lambda *_: 500)
        with pytest.raises(KeyboardInterrupt):
            survey(
                Order.of(checkpoint, checkpoint.tensors.values()), crew=Crew(executor, 5), progress=Watcher(interrupt)
            )
    assert (executor.left, open_files()) == (0, open_before)


def test_progress_comes_from_the_thread_that_asked(checkpoint: Checkpoint) -> None:
    watcher = Watcher()
    with ThreadPoolExecutor(3) as pool:
        survey(Order.of(checkpoint, checkpoint.tensors.values()), crew=Crew(pool, 3), progress=watcher)
    assert watcher.total == [sum(watcher.steps)]
    assert watcher.threads == {threading.get_ident()}


# Files that change, or are others elsewhere


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """One file of 40 units."""
    monkeypatch.setattr(Crew, "unit_bytes", lambda *_: 1 << 14)
    path = tmp_path / "model.safetensors"
    path.write_bytes(content_file({f"{n:02}": ("U8", (1 << 14,), bytes([n]) * (1 << 14)) for n in range(40)}))
    os.utime(path, ns=(10**18, 10**18))
    return open_checkpoint(tmp_path)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")


def cut(path: Path) -> None:
    os.truncate(path, 4096)


def substitute(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


@pytest.mark.parametrize("change", [rewrite, cut, substitute, Path.unlink])
def test_a_file_that_changes_meanwhile_is_an_error(model: Checkpoint, change: Callable[[Path], None]) -> None:
    watcher = Watcher(lambda: change(model.root / "model.safetensors"))
    with ThreadPoolExecutor(1) as pool, pytest.raises(ChangedError, match=r"^model\.safetensors: the file "):
        survey(Order.of(model, model.tensors.values()), crew=Crew(pool, 1), progress=watcher)


def test_another_file_of_the_same_size_elsewhere_is_an_error(model: Checkpoint) -> None:
    """What two machines with copies of their own see: sizes agree, and a header does not."""
    site = Site.of(model, ["model.safetensors"])
    witness = Witness(site)
    (here,) = site.sight()
    witness.hear([replace(here, host="far", stamp=(1, 2, 3))])
    with pytest.raises(ChangedError, match=r"^model\.safetensors: far sees a file with another header or content"):
        witness.hear([replace(here, host="far", stamp=(1, 2, 3), header="another")])
    with pytest.raises(ChangedError, match="far saw two states of it"):
        witness.hear([replace(here, host="far", stamp=(1, 2, 4))])


def test_a_header_is_read_again_when_the_file_is_another(model: Checkpoint) -> None:
    site = Site.of(model, ["model.safetensors"])
    (before,) = site.sight()
    path = model.root / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"39"', b'"xx"'))
    (after,) = site.sight()
    assert before.header != after.header


def test_another_version_measures_nothing(model: Checkpoint) -> None:
    site = replace(Site.of(model, ["model.safetensors"]), version="9.9")
    with pytest.raises(ClusterError, match=r"was asked to measure for gemma-doctor 9\.9\. Install the same version"):
        measure_at(site, ())


def test_jobs_bound_what_an_executor_is_given(model: Checkpoint) -> None:
    executor = Shuffled(lambda _: 0)
    gemma_doctor.scan(model.root, Options(jobs=2), executor=executor)
    assert executor.most == 8
