"""What the model runs on: a device (here a pretended GPU), a part of its memory, and full precision while it lasts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gemma_doctor.errors import UsageError
from gemma_doctor.verify import machine
from gemma_doctor.verify.bench import Bench
from gemma_doctor.verify.measures import Measures

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
GIB = 1 << 30


@pytest.fixture
def fractions(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A GPU of 80 GiB, 20 of them taken by others; the shares of its memory that were allowed."""
    allowed: list[float] = []
    facts = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_name": lambda _: "NVIDIA H100",
        "get_device_properties": lambda _: SimpleNamespace(total_memory=80 * GIB),
        "mem_get_info": lambda _: (60 * GIB, 80 * GIB),
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda _: None,
        "set_per_process_memory_fraction": lambda share, _: allowed.append(share),
        "get_per_process_memory_fraction": lambda _: allowed[-1],
        "memory_allocated": lambda _: 8 * GIB,
    }
    for name, fact in facts.items():
        monkeypatch.setattr(torch.cuda, name, fact)
    return allowed


def test_a_gpu_is_taken_where_there_is_one_and_nothing_else_was_asked_for(fractions: list[float]) -> None:
    assert fractions == []
    assert [machine.find("auto"), machine.find("cuda"), machine.find("cpu")] == [GPU, GPU, CPU]


def test_without_a_gpu_the_cpu_is_taken_unless_a_gpu_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [machine.find("auto"), machine.find("cpu")] == [CPU, CPU]
    with pytest.raises(UsageError, match="use --device cpu"):
        machine.find("cuda")


@pytest.mark.parametrize(("limit", "share"), [(16.0, 0.2), (100.0, 1.0), (None, 1.0)])
def test_the_limit_holds_while_it_lasts(fractions: list[float], limit: float | None, share: float) -> None:
    """And a trace keeps no more than a 16th waiting of what is free of it."""
    with machine.limited(GPU, limit, backward=True, reference=True):
        assert fractions == [share]
        assert machine.waiting(GPU) == (int(80 * GIB * share) - 8 * GIB) >> 4
    assert fractions[-1] == 1.0


def test_a_run_that_needs_more_is_told_what_to_do_and_leaves_no_limit(fractions: list[float]) -> None:
    with pytest.raises(UsageError, match=r"into 16 GiB \(--memory-limit\): shorten it with --seq-len or --image-size"):
        _run_out_of_memory(16.0, backward=True)
    assert fractions == [0.2, 1.0]
    with pytest.raises(UsageError, match="into the memory of this device"):
        _run_out_of_memory(None, backward=True)


@pytest.mark.parametrize(("backward", "reference"), [(False, False), (False, True), (True, False), (True, True)])
def test_what_was_left_out_already_is_not_proposed(fractions: list[float], *, backward: bool, reference: bool) -> None:
    with pytest.raises(UsageError) as told:
        _run_out_of_memory(16.0, backward=backward, reference=reference)
    assert ("--no-backward" in str(told.value)) is backward
    assert ("or leave the reference out with --reference none" in str(told.value)) is reference
    assert fractions[-1] == 1.0


def _run_out_of_memory(limit: float | None, *, backward: bool, reference: bool = True) -> None:
    with machine.limited(GPU, limit, backward=backward, reference=reference):
        raise torch.OutOfMemoryError


@pytest.mark.parametrize(("limit", "room"), [(None, 54), (16.0, 14.4), (70.0, 54)])
def test_weights_get_their_share_of_what_is_free_and_of_the_limit(
    fractions: list[float], limit: float | None, room: float
) -> None:
    assert fractions == []
    most = int(room * GIB)
    assert machine.room(most, GPU, limit, backward=False) is None
    spread = machine.room(most + 1, GPU, limit, backward=False)
    assert spread is not None
    assert spread[0] == most
    assert spread["cpu"] > 1 << 40  # the rest goes to the host, however much it is


@pytest.mark.parametrize(("backward", "limit", "room"), [(False, None, 54), (True, None, 36), (True, 16.0, 9.6)])
def test_a_model_gets_the_room_that_its_run_and_its_dtype_leave(
    fractions: list[float], *, backward: bool, limit: float | None, room: float
) -> None:
    assert fractions == []
    numel = int(room * GIB) // 2
    bench = Bench(Measures(backward=backward, memory_limit=limit), GPU, numel)
    assert bench.spread(torch.float16) is None
    assert bench.spread(torch.float32) == {0: int(room * GIB), "cpu": 1 << 50}


def test_another_gpu_than_the_first_is_filled_itself(fractions: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fractions == []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert machine.room(60 * GIB, machine.find("auto"), None, backward=False) == {1: 54 * GIB, "cpu": 1 << 50}


def test_torchs_cache_of_memory_is_given_back_too(fractions: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(1))
    machine.give_back(CPU)
    assert (given, fractions) == ([], [])
    machine.give_back(GPU)
    assert given == [1]


def test_the_peak_of_memory_is_that_of_this_verification(
    fractions: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not of what the process did before."""
    peak = [50 * GIB]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak[0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: peak.__setitem__(0, 0))
    with machine.limited(GPU, None, backward=True, reference=True):
        peak[0] = max(peak[0], 3 * GIB)
        assert machine.peak_memory(GPU) == 3 * GIB
    assert fractions == [1.0, 1.0]
    assert machine.peak_memory(CPU) is None


def test_what_is_garbage_is_freed_before_free_memory_is_looked_at(
    fractions: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[torch.device] = []
    monkeypatch.setattr(machine, "give_back", given.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (len(given) * GIB, 80 * GIB))
    assert machine.room(GIB // 2, GPU, None, backward=False) is None
    assert (given, fractions) == ([GPU], [])


def test_a_cpu_has_no_limit_and_the_report_says_so() -> None:
    with machine.limited(CPU, 16.0, backward=True, reference=True):
        assert machine.room(1 << 50, CPU, 16.0, backward=True) is None
    assert not any("memory" in fact for fact in machine.imitated(CPU, 16.0))
    assert machine.not_imitated(CPU, 16.0)[-1] == "a T4's memory (--memory-limit holds on a GPU only)"
    assert machine.not_imitated(CPU, None)[-1] == "a T4's memory"


def test_a_gpu_imitates_a_memory_and_a_t4_itself_everything(
    fractions: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fractions == []
    assert machine.imitated(GPU, 16.0)[-1] == "a memory of 16 GiB"
    assert len(machine.imitated(GPU, None)) == len(machine.imitated(GPU, 16.0)) - 1
    assert ["memory" in fact for fact in machine.not_imitated(GPU, None)] == [False]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    assert machine.not_imitated(GPU, None) == ()


PRECISION = (
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
)


def precision(*wanted: bool) -> list[bool]:
    """What torch is set to; and set it to what is wanted."""
    before = [bool(getattr(place, key)) for place, key in PRECISION]
    for (place, key), value in zip(PRECISION, wanted, strict=False):
        setattr(place, key, value)
    return before


@pytest.mark.parametrize("before", [True, False])
def test_products_are_exact_while_it_lasts_and_as_before_afterwards(*, before: bool) -> None:
    original = precision(before, before, before)
    try:
        with machine.without_tf32(0):
            assert precision() == [False] * 3
        assert precision() == [before] * 3
    finally:
        precision(*original)


def test_what_is_random_is_the_same_for_the_same_seed() -> None:
    def drawn(seed: int) -> float:
        with machine.without_tf32(seed):
            return float(torch.rand(()))

    assert drawn(1) == drawn(1) != drawn(2)
