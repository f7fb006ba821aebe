"""The trace names every output where it arose: between modules, in place, in casts, backward; and nothing else."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gemma_doctor.kernels.outputs import Launched
from gemma_doctor.verify import tracing
from gemma_doctor.verify.events import Event, Key
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.tracing import Trace

INF = float("inf")


def traced(model: nn.Module, run: Callable[[], object]) -> list[Event]:
    places = Places.of(model)
    with torch.enable_grad(), places.watching(), (trace := Trace(places)):
        run()
    return list(trace.events())


class Block(nn.Module):
    """A layer whose residual add and square lie between modules."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The layer."""
        return (x + self.inner(x)) ** 2


class Stack(nn.Module):
    """Two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        """Both."""
        result: Tensor = self.second(self.first(x))
        return result


def places_of(events: list[Event], op: str) -> list[tuple[str, str]]:
    return [event.key[:2] for event in events if event.key[2] == op]


def test_functional_operations_belong_to_the_module_that_runs_them() -> None:
    model = Stack()
    events = traced(model, lambda: model(torch.ones(2, 4)))
    assert places_of(events, "aten.add") == [("forward", "first"), ("forward", "second")]
    assert places_of(events, "aten.pow") == [("forward", "first"), ("forward", "second")]
    assert places_of(events, "aten.mm") == [("forward", "first.inner"), ("forward", "second.inner")]
    assert [event.step for event in events] == list(range(len(events)))


def test_gradients_belong_to_the_module_whose_forward_pass_they_undo() -> None:
    model = Stack()
    events = traced(model, lambda: model(torch.ones(2, 4)).sum().backward())
    backward = [event.key for event in events if event.key[0] == "backward"]
    order = [module for _, module, _, _ in backward if module]
    assert order.index("second") < order.index("second.inner") < order.index("first") < order.index("first.inner")
    assert {"first.inner", "second.inner"} <= {module for _, module, op, _ in backward if op == "aten.mm"}


def test_what_a_checkpointed_layer_computes_again_belongs_to_the_backward_pass() -> None:
    model = Stack()

    def run() -> None:
        x = torch.ones(2, 4, requires_grad=True)
        checkpoint(model, x, use_reentrant=False).sum().backward()

    adds = places_of(traced(model, run), "aten.add")
    assert adds[:4] == [(phase, module) for phase in ("forward", "backward") for module in ("first", "second")]


def test_chains_name_the_steps_and_the_weights() -> None:
    model = Stack()
    events = traced(model, lambda: model(torch.ones(2, 4)))
    add = next(event for event in events if event.key == ("forward", "second", "aten.add", 0))
    assert [events[step].key[2] for step in add.inputs] == ["aten.pow", "aten.mm"]
    product = next(event for event in events if event.key[1] == "second.inner")
    assert product.weights == ("second.inner.weight",)


def test_figures_are_those_of_the_moment() -> None:
    """What is written to a tensor later is an output of its own, and does not change what was measured before."""
    model = nn.Module()

    def run() -> None:
        x = torch.full((8,), 3.0)
        y = x * 2
        y.mul_(100)
        y.view(2, 4)[0].fill_(INF)

    events = traced(model, run)
    assert [(event.key[2], event.stats.absmax, event.nonfinite) for event in events] == [
        ("aten.full", 3.0, 0),
        ("aten.mul", 6.0, 0),
        ("aten.mul_", 600.0, 0),
        ("aten.fill_", None, 4),
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(1000),
        lambda: torch.ones(4).new_empty(1000),
        lambda: torch.empty_like(torch.ones(4)),
        lambda: torch.empty_strided((10, 10), (10, 1)),
        lambda: torch.ones(4).new_empty_strided((10, 10), (10, 1)),
    ],
)
def test_uninitialised_memory_is_no_output(make: Callable[[], Tensor]) -> None:
    events = traced(nn.Module(), make)
    assert {event.key[2] for event in events} <= {"aten.ones"}


def test_views_and_integers_are_no_outputs() -> None:
    x = torch.ones(4, 4)
    events = traced(nn.Module(), lambda: (x.t(), x[1:], x.reshape(16), x.detach(), x.argmax(), torch.arange(4)))
    assert events == []


def test_casts_are_outputs() -> None:
    x = torch.tensor([70_000.0, 1.0])
    (event,) = traced(nn.Module(), x.half)
    assert (event.key[2], event.dtype, event.stats.inf, event.unbounded) == ("aten._to_copy", "F16", 1, False)


def test_an_infinity_that_was_asked_for_is_marked() -> None:
    x = torch.zeros(4)
    events = traced(nn.Module(), lambda: x.masked_fill(x == 0, -INF) + torch.full((4,), 1.0))
    assert [event.unbounded for event in events] == [True, False, False]


def test_batches_do_not_change_the_figures() -> None:
    """More outputs than a batch holds, each with its own numbers."""

    def run() -> None:
        for value in range(1, 700):
            torch.full((3,), 1.0) * value

    products = [event.stats.absmax for event in traced(nn.Module(), run) if event.key[2] == "aten.mul"]
    assert products == list(range(1, 700))


def test_what_is_noted_is_nothing_to_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an object for each output, collections took two fifths of what the trace itself took."""
    monkeypatch.setattr(tracing, "launch", lambda _: Launched(()))
    places = Places.of(nn.Module())

    def noted(outputs: int) -> int:
        gc.collect()
        before = len(gc.get_objects())
        with places.watching(), (trace := Trace(places)):
            for _ in range(outputs):
                torch.full((3,), 1.0)
        assert len(trace.events()) == outputs
        gc.collect(0)
        return len(gc.get_objects()) - before

    noted(10)
    assert noted(2000) < noted(1000) + 100


def test_the_same_place_of_another_run_has_the_same_key() -> None:
    def keys(model: nn.Module) -> list[Key]:
        return [event.key for event in traced(model, lambda: model(torch.ones(2, 4)).sum().backward())]

    first = keys(Stack())
    assert first == keys(Stack())
    assert len(set(first)) == len(first)
