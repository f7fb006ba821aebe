"""What passes a trace by changes nothing that it tells, and is put right again whatever happens."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
from checkpoints import healthy, tiny_gemma3_config, tiny_gemma3n_text_config, write
from torch import library, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.verify import passing
from gemma_doctor.verify.bench import Bench
from gemma_doctor.verify.events import Event
from gemma_doctor.verify.inputs import batch
from gemma_doctor.verify.loading import read_config
from gemma_doctor.verify.measures import Measures, Request
from gemma_doctor.verify.operations import operation
from gemma_doctor.verify.passing import VIEWS, ordinary, views_pass
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.tracing import Trace

CPU = torch.device("cpu")


class Names(TorchDispatchMode):  # type: ignore[misc]  # torch is not seen by the type checker
    """Notes what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def overload(name: str) -> Any:  # noqa: ANN401  # torch's OpOverload
    packet, _, kind = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), kind or "default")


def seen() -> list[str]:
    """What a mode sees of a view."""
    with (mode := Names()):
        torch.ones(2, 3).t()
    return mode.names


UNTOUCHED = ["aten.ones.default", "aten.t.default"]


def traced(folder: Path, config: Mapping[str, Any], *, pass_by: bool, amp: bool, again: bool) -> list[Event]:
    """A step forward and backward of a checkpoint, in float16 or under autocast."""
    measures = Measures(device="cpu", request=Request(length=8, side=64), checkpointing=again)
    subject, bench = read_config(open_checkpoint(folder)), Bench(measures, CPU, 0)
    dtype = torch.float32 if amp else torch.float16
    with bench.model(subject, dtype) as model, torch.enable_grad():
        places = replace(Places.of(model), ordinary=pass_by)
        inputs = batch(subject, "image" if "vision_config" in config else "text", measures.request)
        with places.watching(), (trace := bench.trace(places)):
            (bench.run(model, inputs, dtype, amp=amp).loss * 64.0).backward()
    return list(trace.events())


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("amp", [False, True], ids=["half", "amp"])
@pytest.mark.parametrize(
    "config",
    [pytest.param(tiny_gemma3_config(), id="gemma3"), pytest.param(tiny_gemma3n_text_config(), id="gemma3n")],
)
def test_a_trace_tells_the_same_of_every_operation(
    tmp_path: Path, config: dict[str, Any], *, amp: bool, again: bool
) -> None:
    """Figures, sources, modules, phases and order."""
    checkpoint = write(tmp_path / "checkpoint", healthy(config), config)
    every = traced(checkpoint, config, pass_by=False, amp=amp, again=again)
    assert len(every) > 300
    assert {event.key[0] for event in every} == {"forward", "backward"}
    assert traced(checkpoint, config, pass_by=True, amp=amp, again=again) == every


@pytest.mark.parametrize("name", VIEWS)
def test_what_passes_makes_and_writes_nothing(name: str) -> None:
    known = operation(overload(name))
    assert known.silent
    assert not known.written


def test_a_third_of_the_operations_of_a_step_passes(tmp_path: Path) -> None:
    """The trace's reason to let them."""
    config = tiny_gemma3n_text_config()
    subject = read_config(open_checkpoint(write(tmp_path / "checkpoint", healthy(config), config)))
    bench = Bench(Measures(device="cpu", request=Request(length=8)), CPU, 0)

    def calls() -> int:
        with (mode := Names()):
            bench.run(model, batch(subject, "text", Request(length=8)), torch.float16).loss.backward()
        return len(mode.names)

    with bench.model(subject, torch.float16) as model, torch.enable_grad():
        every = calls()
        with views_pass():
            fewer = calls()
    assert fewer < 0.7 * every


def test_writing_through_a_view_is_an_output_of_the_tensor() -> None:
    model = nn.Linear(2, 2)
    with Places.of(model).watching(), (trace := Trace(Places.of(model))):
        x = torch.ones(4)
        x.view(2, 2).t()[0].mul_(3)
        x + 1
    assert [(event.key[2], event.inputs, event.stats.maximum) for event in trace.events()] == [
        ("aten.ones", (), 1.0),
        ("aten.mul", (0,), 3.0),
        ("aten.add", (1,), 4.0),
    ]


def test_all_is_put_right_afterwards() -> None:
    with views_pass(), views_pass():
        assert seen() == UNTOUCHED[:1]
    assert seen() == UNTOUCHED


def test_a_trace_that_fails_puts_it_right() -> None:
    places = Places.of(nn.Linear(2, 2))
    for _ in range(2):
        with pytest.raises(RuntimeError), Trace(places):
            torch.ones(2) + torch.ones(3)
        assert seen() == UNTOUCHED


def test_what_fails_half_way_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {"t": library.fallthrough_kernel}
    monkeypatch.setattr(passing, "VIEWS", ("t", "view"))
    impl = library.Library.impl
    monkeypatch.setattr(library.Library, "impl", lambda self, name, _: impl(self, name, kernels.get(name)))
    with pytest.raises(TypeError), views_pass():
        pass
    assert seen() == UNTOUCHED
    monkeypatch.undo()
    with views_pass():
        assert seen() == UNTOUCHED[:1]
    assert seen() == UNTOUCHED


def test_threads_that_overlap_put_it_right_when_the_last_one_ends() -> None:
    first, second = ExitStack(), ExitStack()
    first.enter_context(views_pass())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(second.enter_context, views_pass()).result()
        first.close()
        assert seen() == UNTOUCHED[:1]
        pool.submit(second.close).result()
    assert seen() == UNTOUCHED


def test_a_mode_that_is_entered_before_sees_views() -> None:
    with (mode := Names()), views_pass(), Trace(Places.of(nn.Linear(2, 2))):
        torch.ones(2, 3).t()
    assert "aten.t.default" in mode.names


def test_a_model_of_tensors_that_answer_for_themselves_is_left_as_it_is() -> None:
    class Answering(torch.Tensor):  # type: ignore[misc]  # torch is not seen by the type checker
        """Sees every operation."""

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
            return func(*args, **(kwargs or {}))

    plain = torch.ones(2)
    assert ordinary([plain, nn.Parameter(plain)])
    answering = torch.Tensor._make_subclass(Answering, plain)  # noqa: SLF001  # as such classes are made
    assert not ordinary([plain, answering])
    model = nn.Linear(2, 2)
    model.register_buffer("answering", answering)
    places = Places.of(model)
    assert not places.ordinary
    with Trace(places):
        assert "aten.t.default" in seen()


def test_what_is_compiled_runs_operation_by_operation() -> None:
    """A compiler works on tensors of a class that answers for itself."""
    model = nn.Linear(2, 2)
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: object) -> Any:  # noqa: ANN401  # torch.fx's GraphModule
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda x: (x.view(-1) * 2).sum(), backend=backend)
    with (trace := Trace(Places.of(model))):
        assert compiled(torch.ones(3, 4)) == 24
    assert [event.key[2] for event in trace.events()] == ["aten.ones", "aten.mul", "aten.sum"]
    assert not graphs
    assert compiled(torch.ones(3, 4)) == 24
    assert len(graphs) == 1
