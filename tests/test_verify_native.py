"""The recorder in C++ notes what the one in Python does, and keeps out of everybody else's way."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
from checkpoints import healthy, tiny_gemma3_config, tiny_gemma3n_config, write
from native_recorder import compiled_recorder
from torch import Tensor, library, nn
from torch._subclasses import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _len_torch_dispatch_stack

from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.kernels import outputs
from gemma_doctor.kernels.devices import is_watched
from gemma_doctor.verify.bench import Bench
from gemma_doctor.verify.events import Event
from gemma_doctor.verify.figures import Figures
from gemma_doctor.verify.inputs import batch
from gemma_doctor.verify.loading import read_config
from gemma_doctor.verify.measures import Measures, Request
from gemma_doctor.verify.native import NativeTrace
from gemma_doctor.verify.outputs import Comparing, Keeping, seeing
from gemma_doctor.verify.passing import unseen
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.tracing import Trace

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def compiled() -> Any:  # noqa: ANN401  # a compiled module
    return compiled_recorder()


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.GELU())


@pytest.fixture
def trace(compiled: Any, model: nn.Module) -> NativeTrace:  # noqa: ANN401
    return NativeTrace(compiled, Places.of(model), 1 << 28)


def ops(trace: NativeTrace) -> list[str]:
    return [event.key[2] for event in trace.events()]


class Names(TorchDispatchMode):  # type: ignore[misc]  # torch is not seen by the type checker
    """Notes what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def steps(folder: Path, config: Mapping[str, Any], compiled: Any, *, amp: bool, again: bool) -> list[list[Event]]:  # noqa: ANN401
    """A step forward and backward of a checkpoint, recorded in Python and in C++."""
    measures = Measures(device="cpu", request=Request(length=8, side=64), checkpointing=again)
    subject, bench = read_config(open_checkpoint(folder)), Bench(measures, CPU, 0)
    dtype = torch.float32 if amp else torch.float16
    found = []
    with bench.model(subject, dtype) as model, torch.enable_grad():
        for recorder in (None, compiled):
            places = Places.of(model)
            inputs = batch(subject, "image" if "vision_config" in config else "text", measures.request)
            trace = Trace(places, 1 << 14) if recorder is None else NativeTrace(recorder, places, 1 << 14)
            with places.watching(), trace:
                (bench.run(model, inputs, dtype, amp=amp).loss * 64.0).backward()
            model.zero_grad()
            found.append(list(trace.events()))
    return found


@pytest.mark.parametrize(
    ("config", "amp", "again"),
    [
        pytest.param(tiny_gemma3_config(), False, True, id="gemma3-recomputed"),
        pytest.param(tiny_gemma3_config(), True, False, id="gemma3-amp"),
        pytest.param(tiny_gemma3n_config(), False, False, id="gemma3n"),
    ],
)
def test_both_record_the_same_step(
    tmp_path: Path,
    config: dict[str, Any],
    compiled: Any,  # noqa: ANN401
    *,
    amp: bool,
    again: bool,
) -> None:
    """Figures, sources, weights, modules, phases and order."""
    checkpoint = write(tmp_path / "checkpoint", healthy(config), config)
    python, cpp = steps(checkpoint, config, compiled, amp=amp, again=again)
    assert len(python) > 500
    assert {event.key[0] for event in python} == {"forward", "backward"}
    assert cpp == python


def test_torch_sees_no_dispatch_mode_and_runs_as_without_a_trace(trace: NativeTrace, model: nn.Module) -> None:
    """For a mode it would ask Python for each gradient, and add none up in place."""
    with torch.enable_grad(), trace:
        assert not _len_torch_dispatch_stack()
        (model(torch.ones(3, 4)).square().sum() * 2).backward()
    assert ops(trace)[:4] == ["aten.ones", "aten.addmm", "aten.gelu", "aten.pow"]


def test_kernels_are_told_that_they_are_watched(trace: NativeTrace) -> None:
    """Those of guards are run as operators then, which they are not otherwise."""
    x = torch.ones(2)
    with trace:
        assert is_watched(x)
    assert not is_watched(x)


def test_operations_of_others_are_recorded_and_what_they_call_is_not(trace: NativeTrace) -> None:
    @library.custom_op("gemma_doctor_test::twice", mutates_args=())  # type: ignore[untyped-decorator]
    def twice(x: Tensor) -> Tensor:
        return x * 2

    with trace:
        twice(torch.ones(3) + 1) + 1
    events = trace.events()
    assert ops(trace) == ["aten.ones", "aten.add", "gemma_doctor_test.twice", "aten.add"]
    assert [event.inputs for event in events] == [(), (0,), (1,), (2,)]
    assert [event.stats.maximum for event in events] == [1.0, 2.0, 4.0, 5.0]


def test_neither_the_trace_nor_what_it_recorded_keeps_a_model(compiled: Any) -> None:  # noqa: ANN401
    """Without Python's garbage collector, which sees no circle that goes through C++."""
    model = nn.Linear(4, 4)
    memory = StorageWeakRef(model.weight.untyped_storage())
    trace = NativeTrace(compiled, places := Places.of(model), 1 << 28)
    gc.disable()
    try:
        with torch.enable_grad(), places.watching(), trace:
            model(torch.ones(3, 4)).sum().backward()
        events = trace.events()
        del model, places, trace
        assert memory.expired()
    finally:
        gc.enable()
    assert [event.key[2] for event in events][:2] == ["aten.ones", "aten.addmm"]


def test_it_ends_with_the_trace(trace: NativeTrace) -> None:
    with trace:
        torch.ones(3) + 1
    recorded = len(trace.events())
    torch.ones(3) + 1
    with Names() as mode:
        torch.ones(3) + 1
    assert mode.names == ["aten.ones.default", "aten.add.Tensor"]
    assert len(trace.events()) == recorded


def test_a_trace_that_fails_ends_too(trace: NativeTrace) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="must match the size"), trace:
            torch.ones(2) + torch.ones(3)
        with Names() as mode:
            torch.ones(3)
        assert mode.names == ["aten.ones.default"]


def test_a_mode_that_is_entered_within_sees_its_operations_and_the_trace_does_too(trace: NativeTrace) -> None:
    with trace:
        x = torch.ones(3)
        with Names() as mode:
            y = x + 1
        y * 3
    assert mode.names == ["aten.add.Tensor"]
    assert ops(trace) == ["aten.ones", "aten.add", "aten.mul"]


def test_a_mode_that_is_entered_before_sees_what_the_trace_does(trace: NativeTrace) -> None:
    with Names() as mode, trace:
        torch.ones(3).add_(1)
    assert mode.names == ["aten.ones.default", "aten.add_.Tensor"]
    assert ops(trace) == ["aten.ones", "aten.add"]


def test_a_mode_that_is_entered_before_does_not_see_how_outputs_are_measured(compiled: Any, model: nn.Module) -> None:  # noqa: ANN401
    """Each as soon as it is noted."""
    trace = NativeTrace(compiled, Places.of(model), 1)
    with Names() as mode, trace:
        torch.ones(3) + 1
    assert mode.names == ["aten.ones.default", "aten.add.Tensor"]


def test_what_memory_held_is_forgotten_where_it_means_nothing(compiled: Any, model: nn.Module) -> None:  # noqa: ANN401
    trace = NativeTrace(compiled, Places.of(model), 1)
    with trace:
        x = torch.ones(4) * 2
        x + 1
        x.resize_(4) + 1
    assert [(event.key[2], event.inputs) for event in trace.events()] == [
        ("aten.ones", ()),
        ("aten.mul", (0,)),
        ("aten.add", (1,)),
        ("aten.add", ()),
    ]


def test_a_constant_where_an_output_lay_that_is_gone_has_no_source(compiled: Any, model: nn.Module) -> None:  # noqa: ANN401
    """Outputs are gone at once where they are measured at once."""
    trace = NativeTrace(compiled, Places.of(model), 1)
    with trace:
        for _ in range(20):
            torch.ones(2) * 2
            torch.tensor([1.0, 2.0]) * 3
    products = [event for event in trace.events() if event.key[2] == "aten.mul" and event.stats.maximum == 6.0]
    assert [event.inputs for event in products] == [()] * 20


def test_what_is_done_beside_the_model_is_not_recorded(trace: NativeTrace, model: nn.Module) -> None:
    """Neither how modules' outputs are compared, nor how gradients are measured; and afterwards it is as before."""
    keeping = Keeping()
    with trace, seeing(model, keeping):
        model(torch.ones(3, 4))
        with seeing(model, Comparing(keeping.kept)):
            model(torch.ones(3, 4))
        figures = Figures()
        figures.add("broken", torch.ones(4, 4)[::2].t()[::2])
        assert figures.stats()["broken"].count == 4
        torch.zeros(2)
    step = ["aten.ones", "aten.addmm", "aten.gelu"]
    assert ops(trace) == [*step, *step, "aten.ones", "aten.zeros"]


def test_what_is_done_beside_something_that_is_beside_the_model_is_not_either(trace: NativeTrace) -> None:
    with trace:
        with unseen():
            with unseen():
                torch.ones(2)
            torch.zeros(2)
        torch.full((2,), 1.0)
    assert ops(trace) == ["aten.full"]


def test_observers_that_are_switched_off_are_on_while_it_is_entered(trace: NativeTrace) -> None:
    switch = torch.autograd._enable_record_function  # noqa: SLF001  # no public name does it
    switch(False)  # noqa: FBT003
    try:
        with trace:
            torch.ones(2)
        with torch.autograd.profiler.profile() as profile:
            torch.ones(2)
    finally:
        switch(True)  # noqa: FBT003
    assert ops(trace) == ["aten.ones"]
    assert not profile.function_events


def test_what_is_compiled_runs_operation_by_operation(trace: NativeTrace) -> None:
    doubled = torch.compile(lambda x: x * 2, backend=lambda *_: lambda *_: (torch.zeros(3),))
    with trace:
        doubled(torch.ones(3))
    assert ops(trace) == ["aten.ones", "aten.mul"]


def test_what_autocast_casts_is_recorded(trace: NativeTrace) -> None:
    """An operation that autocast knows casts what it is given, and calls itself."""
    narrow, wide = torch.full((2,), 2.0**15, dtype=torch.float16), torch.full((2,), 2.0**17)
    with trace, torch.autocast("cpu", torch.float16):
        nn.functional.mse_loss(narrow, wide)
    with trace:
        nn.functional.mse_loss(wide, wide)
    assert [(event.key[2], event.dtype, event.stats.absmax) for event in trace.events()] == [
        ("aten._to_copy", "F32", 2.0**15),
        ("aten.mse_loss", "F32", 9 * 2.0**30),
        ("aten.mse_loss", "F32", 0.0),
    ]


def test_what_is_mapped_over_a_batch_is_recorded_once_for_all(trace: NativeTrace) -> None:
    with trace:
        torch.vmap(lambda x: (x * x).exp())(torch.tensor([0.0, 1.0]))
    assert [(event.key[2], event.shape) for event in trace.events()] == [("aten.mul", (2,)), ("aten.exp", (2,))]


def test_a_tensor_whose_class_answers_for_itself_does_so(trace: NativeTrace) -> None:
    """A model may make one on its way; it has no memory of its own, and a kernel that took it for one would crash."""

    class Wrapping(torch.Tensor):  # type: ignore[misc]  # torch is not seen by the type checker
        """Shows what it holds, tenfold."""

        @staticmethod
        def __new__(cls, held: Tensor) -> Any:  # noqa: ANN001, ANN401
            return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)  # noqa: SLF001

        def __init__(self, held: Tensor) -> None:
            self.held = held

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
            return func(*(item.held * 10 if isinstance(item, cls) else item for item in args))

    x = Wrapping(torch.ones(3))
    with trace:
        y = torch.full((3,), 2.0) + x
    assert y.tolist() == [12.0] * 3
    assert [(event.key[2], event.stats.maximum) for event in trace.events()] == [
        ("aten.full", 2.0),
        ("aten.mul", 10.0),  # which the class has asked for
        ("aten.add", 12.0),
    ]


def test_other_threads_are_left_alone(trace: NativeTrace) -> None:
    class Answering(torch.Tensor):  # type: ignore[misc]  # torch is not seen by the type checker
        """Counts operations."""

        calls = 0

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
            cls.calls += 1
            with torch._C._DisableTorchDispatch():  # noqa: SLF001  # no public name does it
                return func(*args)

    def elsewhere() -> tuple[bool, int, list[str]]:
        with FakeTensorMode():
            fake = (torch.ones(3) + 1).sum()
        torch.Tensor._make_subclass(Answering, torch.ones(3)) + 1  # noqa: SLF001  # as such classes are made
        with Names() as mode:
            torch.ones(3) * 2
        return type(fake) is not Tensor, Answering.calls, mode.names

    with trace, ThreadPoolExecutor(1) as pool:
        torch.ones(3)
        fake, calls, names = pool.submit(elsewhere).result()
    assert (fake, calls, names) == (True, 1, ["aten.ones.default", "aten.mul.Tensor"])
    assert ops(trace) == ["aten.ones"]


def test_a_thread_that_outlives_it_is_left_alone(trace: NativeTrace) -> None:
    """TorchScript's go on observing."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(trace.__enter__).result()
        pool.submit(torch.ones, 2).result()
        trace.__exit__(None)
        pool.submit(torch.zeros, 2).result()
    assert ops(trace) == ["aten.ones"]


def test_a_call_that_outlives_it_is_not_noted(compiled: Any, model: nn.Module) -> None:  # noqa: ANN401
    one, other = (NativeTrace(compiled, Places.of(model), 1 << 28) for _ in range(2))

    @library.custom_op("gemma_doctor_test::ending", mutates_args=())  # type: ignore[untyped-decorator]
    def ending(x: Tensor) -> Tensor:
        one.__exit__(None)
        return x * 2

    one.__enter__()
    ending(torch.ones(2))
    with other:
        torch.zeros(2)
    assert (ops(one), ops(other)) == (["aten.ones"], ["aten.zeros"])


def test_there_is_one_at_a_time_and_another_is_refused(compiled: Any, model: nn.Module) -> None:  # noqa: ANN401
    one, other = (NativeTrace(compiled, Places.of(model), 1 << 28) for _ in range(2))
    with one:
        torch.ones(2)
        with pytest.raises(RuntimeError, match="one at a time"), other:
            pass
        torch.zeros(2)
    with other:
        torch.full((2,), 3.0)
    assert (ops(one), ops(other)) == (["aten.ones", "aten.zeros"], ["aten.full"])


def test_a_trace_in_python_within_records_too(compiled: Any, model: nn.Module) -> None:  # noqa: ANN401
    """And neither takes the running modules from the other."""
    places = Places.of(model)
    outer, inner = NativeTrace(compiled, places, 1 << 28), Trace(places)
    with places.watching(), outer:
        with inner:
            model(torch.ones(3, 4))
        model(torch.ones(3, 4))
    twice = [("", "aten.ones"), ("0", "aten.addmm"), ("1", "aten.gelu")]
    assert [event.key[1:3] for event in inner.events()] == twice
    assert [event.key[1:3] for event in outer.events()] == [*twice, *twice]


def test_what_fails_while_outputs_are_measured_is_what_the_caller_sees(
    trace: NativeTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_tensors: object) -> None:
        raise torch.OutOfMemoryError("no memory to measure")

    monkeypatch.setattr(outputs, "launch", failing)
    with pytest.raises(torch.OutOfMemoryError, match="no memory to measure"), trace:
        [torch.ones(3) for _ in range(600)]
    with pytest.raises(torch.OutOfMemoryError, match="no memory to measure"):
        trace.events()
    with pytest.raises(ValueError, match="its own"), trace:
        raise ValueError(f"its own, of {len([torch.ones(3) for _ in range(600)])}")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what Triton's interpreter says of NaN and overflow
def test_what_is_measured_in_place_has_the_same_figures(
    compiled: Any,  # noqa: ANN401
    model: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, of which Triton's interpreter takes the place: dense or not, of dtypes that it knows or not."""

    def run() -> None:
        x = torch.arange(24.0).view(2, 3, 4) - 12
        for y in (x, x.half(), x.bfloat16(), x.half() * 7e4, x.half() / 0):
            y + 1
            (y.transpose(0, 2) * 2).permute(1, 0, 2) * 3
        (x[:, ::2] * 2).expand(4, 2, 2, 4) + 1
        x.half() + 1
        x.double() * 3
        x[:, ::2].mul_(2)
        torch._neg_view(x.clone()).add_(1)  # noqa: SLF001  # as the imaginary part of a conjugate

    def recorded() -> list[Event]:
        trace = NativeTrace(compiled, Places.of(model), 1 << 10)
        with trace:
            run()
        return list(trace.events())

    there = recorded()
    launched: list[int] = []
    in_place = outputs.launch_in_place

    def counted(where: Any, device: torch.device) -> outputs.Launched:  # noqa: ANN401
        launched.append(where.shape[1])
        return in_place(where, device)

    monkeypatch.setattr(outputs, "runs_triton", lambda _: True)
    monkeypatch.setattr(outputs, "launch_in_place", counted)
    assert recorded() == there
    assert 0 < sum(launched) < len(there)
