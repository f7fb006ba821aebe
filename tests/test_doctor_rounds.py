"""Several checkpoints on one executor: each report is that of a scan alone, and nobody waits between two of them."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoint_bytes import Content, content_file
from checkpoints import write
from hypothesis import given
from hypothesis import strategies as st
from test_inspect_executors import Shuffled
from test_inspect_survey import Watcher, every_dtype, open_files

import gemma_doctor
from gemma_doctor import DoctorError, Options, Report
from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.doctor import Outcome, Round
from gemma_doctor.errors import ChangedError, ClusterError, HeaderError, SettingsError, SourceNotFoundError
from gemma_doctor.inspect import line
from gemma_doctor.inspect.crew import Crew
from gemma_doctor.inspect.line import AHEAD, in_turn
from gemma_doctor.inspect.orders import Order, Survey


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every dtype; a large tensor; an absent folder; many small ones; a file without tensors; one that is sick."""
    root = tmp_path_factory.mktemp("models")
    content: dict[str, Content] = {
        "dtypes": every_dtype(),
        "large": {"w": ("BF16", (1 << 16,), bytes(range(256)) * 512)},
        "small": {f"{n:03}": ("F32", (64,), np.full(64, n, np.float32).tobytes()) for n in range(100)},
        "empty": {"none": ("F32", (0, 4), b"")},
    }
    for name, tensors in content.items():
        (root / name).mkdir()
        (root / name / "model.safetensors").write_bytes(content_file(dict(tensors)))
    write(root / "sick", {"a.weight": np.full((8, 8), np.inf, np.float32)})
    return [root / name for name in ("dtypes", "large", "absent", "small", "empty", "sick")]


def timeless(outcome: Outcome) -> object:
    """What can be compared: a report without its time, or the words of an error."""
    return replace(outcome, seconds=0) if isinstance(outcome, Report) else (type(outcome), str(outcome))


def alone(source: Path) -> object:
    try:
        return timeless(gemma_doctor.scan(source, Options(jobs=1)))
    except DoctorError as error:
        return timeless(error)


@pytest.fixture(scope="module")
def reference(models: list[Path]) -> list[object]:
    return [alone(model) for model in models]


@given(st.integers(0, 2**32).map(random.Random), st.integers(1, 20), st.sampled_from([500, 100_000, 1 << 26]))
def test_law_each_outcome_is_that_of_a_scan_alone(
    models: list[Path], reference: list[object], chance: random.Random, width: int, unit_bytes: int
) -> None:
    executor, order = Shuffled(chance.randrange), chance.sample(range(6), 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Crew, "unit_bytes", lambda *_: unit_bytes)
        found = list(gemma_doctor.scan_all([models[n] for n in order], Options(jobs=width), executor=executor))
    assert [timeless(outcome) for outcome in found] == [reference[n] for n in order]
    assert (executor.most <= AHEAD * width, executor.left) == (True, 0)


@pytest.mark.parametrize("executor", [None, ThreadPoolExecutor, ProcessPoolExecutor])
def test_threads_of_this_process_and_real_pools_give_the_same(
    models: list[Path], reference: list[object], executor: Callable[[int], Executor] | None
) -> None:
    with nullcontext(None) if executor is None else executor(2) as pool:
        found = list(gemma_doctor.scan_all(models, Options(jobs=2), executor=pool))
    assert [timeless(outcome) for outcome in found] == reference
    assert [type(outcome) for outcome in found] == [Report, Report, SourceNotFoundError, Report, Report, Report]


# The queue


def known(order: Order) -> Future[Order]:
    future: Future[Order] = Future()
    future.set_result(order)
    return future


def orders(model: Path, number: int, asked: list[int]) -> Iterator[Future[Order]]:
    """The same checkpoint so many times; which have been asked for is put down."""
    checkpoint = open_checkpoint(model)
    for index in range(number):
        asked.append(index)
        yield known(Order.of(checkpoint, checkpoint.tensors.values()))


def test_units_of_the_next_checkpoints_are_under_way_before_the_first_ends(models: list[Path]) -> None:
    """Each has one unit, so a queue that ended with each checkpoint would never hold more than one."""
    executor = Shuffled(lambda _: 0)
    asked: list[int] = []
    with closing(in_turn(orders(models[1], 30, asked), Crew(executor, 3), lambda _: nullcontext())) as found:
        assert isinstance(next(found), Survey)
        assert executor.most == AHEAD * 3
        assert len(asked) <= AHEAD * 3 + 2
        assert len(list(found)) == 29
    assert executor.most == AHEAD * 3


def test_checkpoints_that_are_open_at_once_are_bounded(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "AT_ONCE", 5)
    executor, before = Shuffled(lambda _: 0), open_files()
    asked: list[int] = []
    with closing(in_turn(orders(models[1], 30, asked), Crew(executor, 100), lambda _: nullcontext())) as found:
        next(found)
        assert (len(asked), open_files()) == (5, before + 2 * 4)  # a descriptor and a mapping each
    assert open_files() == before


def test_an_order_that_is_not_known_yet_keeps_nobody_waiting(models: list[Path]) -> None:
    """Its checkpoint is still being opened: the results that are there are taken first."""
    (ready,) = orders(models[1], 1, [])
    opening: Future[Order] = Future()
    with closing(in_turn([ready, opening], Crew(Shuffled(lambda _: 0), 3), lambda _: nullcontext())) as found:
        assert isinstance(next(found), Survey)
        opening.set_exception(HeaderError("broken"))
        assert [str(outcome) for outcome in found] == ["broken"]


# What goes wrong with one, and with all


def test_a_checkpoint_that_changes_meanwhile_is_lost_alone(
    models: list[Path], reference: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Crew, "unit_bytes", lambda *_: 1 << 14)
    victim = write(tmp_path / "victim", {"w": np.ones((1 << 8, 1 << 8), np.float32)})
    file = next(victim.glob("*.safetensors"))
    os.utime(file, ns=(10**18, 10**18))
    watchers = [Watcher(), Watcher(file.touch), Watcher()]
    sources = [models[0], victim, models[3]]
    with ThreadPoolExecutor(1) as pool:
        todo = Round(sources, lambda _: Options(), lambda number: nullcontext(watchers[number]))
        first, changed, last = todo.outcomes(Crew(pool, 1))
    assert isinstance(changed, ChangedError)
    assert [timeless(first), timeless(last)] == [reference[0], reference[3]]
    assert [sum(watchers[n].steps) == watchers[n].total[0] for n in (0, 2)] == [True, True]


def test_settings_that_are_wrong_end_their_source_alone(models: list[Path], reference: list[object]) -> None:
    def options(number: int) -> Options:
        if number == 1:
            raise SettingsError("wrong")
        return Options()

    with ThreadPoolExecutor(1) as pool:
        for crew in (None, Crew(pool, 1)):
            first, wrong, last = Round(models[3:], options).outcomes(crew)
            assert isinstance(wrong, SettingsError)
            assert [timeless(first), timeless(last)] == [reference[3], reference[5]]


def test_an_executor_that_dies_ends_all_that_are_left(models: list[Path]) -> None:
    with ProcessPoolExecutor(1) as pool:
        pool.submit(os._exit, 3)
        found = list(gemma_doctor.scan_all([models[0], models[1], models[3]], Options(jobs=1), executor=pool))
    assert [type(outcome) for outcome in found] == [ClusterError] * 3
    assert all("the executor stopped before everything was measured" in str(outcome) for outcome in found)


def test_an_interrupt_takes_back_the_units_of_all(models: list[Path]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    executor, before = Shuffled(lambda _: 0), open_files()
    watcher = Watcher(interrupt)
    todo = Round([models[1]] * 9, lambda _: Options(), lambda _: nullcontext(watcher))
    with pytest.raises(KeyboardInterrupt):
        list(todo.outcomes(Crew(executor, 2)))
    for thread in threading.enumerate():  # what was being opened at that moment
        if thread.name.startswith("opening"):
            thread.join()
    assert (executor.left, open_files()) == (0, before)
