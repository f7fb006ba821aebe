"""The trace names every output where it arose: between modules, in place, in casts, backward; and nothing else."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from native_recorder import compiled_recorder
from torch import Tensor, library, nn
from torch.utils.checkpoint import checkpoint

from gemma_doctor.kernels.outputs import Launched
from gemma_doctor.verify import recording
from gemma_doctor.verify.events import Event, Key
from gemma_doctor.verify.native import NativeTrace
from gemma_doctor.verify.passing import unseen
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.tracing import Trace

INF = float("inf")


Traced = Callable[[nn.Module, Callable[[], object]], list[Event]]
"""Runs something of a model, and gives what was recorded."""


@pytest.fixture(params=["in Python", "in C++"])
def traced(request: pytest.FixtureRequest) -> Traced:
    module = compiled_recorder() if request.param == "in C++" else None

    def made(places: Places) -> Trace | NativeTrace:
        return Trace(places) if module is None else NativeTrace(module, places, 1 << 28)

    def run_traced(model: nn.Module, run: Callable[[], object]) -> list[Event]:
        places = Places.of(model)
        with torch.enable_grad(), places.watching(), (trace := made(places)):
            run()
        return list(trace.events())

    return run_traced


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


def test_functional_operations_belong_to_the_module_that_runs_them(traced: Traced) -> None:
    model = Stack()
    events = traced(model, lambda: model(torch.ones(2, 4)))
    assert places_of(events, "aten.add") == [("forward", "first"), ("forward", "second")]
    assert places_of(events, "aten.pow") == [("forward", "first"), ("forward", "second")]
    assert places_of(events, "aten.mm") == [("forward", "first.inner"), ("forward", "second.inner")]
    assert [event.step for event in events] == list(range(len(events)))


def test_gradients_belong_to_the_module_whose_forward_pass_they_undo(traced: Traced) -> None:
    model = Stack()
    events = traced(model, lambda: model(torch.ones(2, 4)).sum().backward())
    backward = [event.key for event in events if event.key[0] == "backward"]
    order = [module for _, module, _, _ in backward if module]
    assert order.index("second") < order.index("second.inner") < order.index("first") < order.index("first.inner")
    assert {"first.inner", "second.inner"} <= {module for _, module, op, _ in backward if op == "aten.mm"}


def test_what_a_checkpointed_layer_computes_again_belongs_to_the_backward_pass(traced: Traced) -> None:
    model = Stack()

    def run() -> None:
        x = torch.ones(2, 4, requires_grad=True)
        checkpoint(model, x, use_reentrant=False).sum().backward()

    adds = places_of(traced(model, run), "aten.add")
    assert adds[:4] == [(phase, module) for phase in ("forward", "backward") for module in ("first", "second")]


def test_gradients_that_are_added_up_belong_to_the_module_of_their_parameter(traced: Traced) -> None:
    model = Stack()

    def run() -> None:
        for _ in range(2):
            model(torch.ones(2, 4)).sum().backward()

    added = {place for place in places_of(traced(model, run), "aten.add") if place[0] == "backward"}
    assert added == {("backward", "first.inner"), ("backward", "second.inner")}


def test_autograd_does_what_it_does_unwatched(traced: Traced) -> None:
    """It copies a gradient before it keeps it, where somebody else holds it."""
    model = Stack()
    events = traced(model, lambda: model(torch.ones(2, 4)).sum().backward())
    assert model.first.inner.weight.grad is not None
    assert "aten.clone" not in {event.key[2] for event in events}


def test_chains_name_the_steps_and_the_weights(traced: Traced) -> None:
    model = Stack()
    events = traced(model, lambda: model(torch.ones(2, 4)))
    add = next(event for event in events if event.key == ("forward", "second", "aten.add", 0))
    assert [events[step].key[2] for step in add.inputs] == ["aten.pow", "aten.mm"]
    product = next(event for event in events if event.key[1] == "second.inner")
    assert product.weights == ("second.inner.weight",)


def test_figures_are_those_of_the_moment(traced: Traced) -> None:
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
        ("aten.mul", 600.0, 0),
        ("aten.fill", None, 4),
    ]


def test_what_torch_hides_is_no_output(traced: Traced) -> None:
    """As it does while it moves ``torch.tensor(0.5, device="cuda")`` to the GPU."""

    def run() -> None:
        with torch._C._DisableTorchDispatch():  # noqa: SLF001  # what torch does then has no public name
            hidden = torch.ones(2)
        hidden + 1

    assert [(event.key[2], event.inputs) for event in traced(nn.Module(), run)] == [("aten.add", ())]


def test_what_is_given_back_as_it_was_does_not_change_what_was_measured_before(traced: Traced) -> None:
    """In inference mode dropout is an operation, and what it gives is what it was given."""

    def run() -> None:
        with torch.inference_mode():
            nn.functional.dropout(torch.full((4,), 3.0) * 2, training=False).mul_(100)

    events = traced(nn.Module(), run)
    assert [(event.key[2], event.stats.absmax) for event in events if event.key[2] != "aten.dropout"] == [
        ("aten.full", 3.0),
        ("aten.mul", 6.0),
        ("aten.mul", 600.0),
    ]


def test_of_attention_only_what_it_gives_is_an_output(traced: Traced) -> None:
    """What else it returns is for its backward pass: padded, with infinities."""
    x = torch.ones(1, 2, 8, 16, dtype=torch.float16, requires_grad=True)
    events = traced(nn.Module(), lambda: nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True))
    assert [event.shape for event in events if "attention" in event.key[2]] == [(1, 2, 8, 16)]


def test_of_its_gradients_all_are(traced: Traced) -> None:
    inputs = [torch.ones(1, 2, 8, 16, dtype=torch.float16, requires_grad=True) for _ in range(3)]

    def run() -> None:
        nn.functional.scaled_dot_product_attention(*inputs, is_causal=True).sum().backward()

    events = traced(nn.Module(), run)
    assert len([event for event in events if "attention" in event.key[2] and event.key[0] == "backward"]) == 3


def test_lists_and_several_outputs_are_outputs(traced: Traced) -> None:
    model, x = nn.Module(), torch.arange(6.0)
    events = traced(model, lambda: (torch.aminmax(x), torch._foreach_add([x, x[:2]], 1.0)))  # noqa: SLF001
    figures = [(event.key[2:], event.shape, event.stats.maximum) for event in events]
    assert figures == [
        (("aten.aminmax", 0), (), 0.0),
        (("aten.aminmax", 1), (), 5.0),
        (("aten._foreach_add", 0), (6,), 6.0),
        (("aten._foreach_add", 1), (2,), 2.0),
    ]


def test_a_list_of_tensors_that_is_written_to_is_of_outputs(traced: Traced) -> None:
    x, y = torch.ones(4), torch.ones(2)
    events = traced(nn.Module(), lambda: torch._foreach_mul_([x * 2, y], 3.0))
    assert [(event.key[2], event.stats.maximum, event.inputs) for event in events] == [
        ("aten.mul", 2.0, ()),
        ("aten._foreach_mul", 6.0, (0,)),
        ("aten._foreach_mul", 3.0, (0,)),
    ]


def test_what_failed_wrote_nothing(traced: Traced) -> None:
    """It returns nothing, whether it fails or not."""
    targets = [torch.ones(2), torch.ones(2)]

    def run() -> None:
        with pytest.raises(RuntimeError, match="must match the size"):
            torch._foreach_add_(targets, [torch.ones(2), torch.ones(3)])
        torch._foreach_add_(targets, 1.0)

    ops = [event.key[2] for event in traced(nn.Module(), run)]
    assert ops == ["aten.ones"] * 2 + ["aten._foreach_add"] * 2


def test_sparse_gradients_have_no_memory_and_what_they_hold_has(traced: Traced) -> None:
    table = nn.Embedding(5, 3, sparse=True)

    def run() -> None:
        (table(torch.tensor([1, 1, 2])) * 2).sum().backward()
        table.weight.grad.to_dense() * 2

    events = traced(table, run)
    assert [(event.key[2], event.inputs) for event in events[-3:]] == [
        ("aten.mul", (3,)),
        ("aten._to_dense", ()),
        ("aten.mul", (5,)),
    ]


@pytest.mark.parametrize(
    ("run", "ops"),
    [
        (
            lambda: torch.func.grad(lambda x: (x * torch.ones(3)).sum())(torch.zeros(3)),
            ["zeros", "ones", "mul", "sum", "ones_like", "mul"],
        ),
        (
            lambda: torch.vmap(lambda x: x + torch.randn(3), randomness="different")(torch.zeros(2, 3)),
            ["zeros", "randn", "add"],
        ),
        (lambda: torch.func.functionalize(lambda x: x.add_(1))(torch.zeros(3)), ["zeros", "add", "copy"]),
        (
            lambda: torch.autograd.grad(
                (x := torch.ones(2, requires_grad=True)) * 3, x, torch.eye(2), is_grads_batched=True
            ),
            ["ones", "mul", "eye", "mul"],
        ),
    ],
    ids=["grad", "vmap", "functionalize", "batched"],
)
def test_what_transforms_call_in_turn_is_recorded_once(
    traced: Traced, run: Callable[[], object], ops: list[str]
) -> None:
    """What makes tensors too."""
    assert [event.key[2] for event in traced(nn.Module(), run)] == [f"aten.{op}" for op in ops]


def test_operators_that_come_and_go_have_their_own_names(traced: Traced) -> None:
    """They may lie where another one lay."""

    def run() -> None:
        for name in "abcd":
            own = library.Library("gemma_doctor_test", "FRAGMENT")
            own.define(f"{name}(Tensor x) -> Tensor")
            own.impl(name, lambda x: x * 2, "CPU")
            getattr(torch.ops.gemma_doctor_test, name)(torch.ones(2))
            own._destroy()  # noqa: SLF001  # as torch's documentation says

    ops = [event.key[2] for event in traced(nn.Module(), run)]
    assert ops[1::2] == [f"gemma_doctor_test.{name}" for name in "abcd"]


def test_two_outputs_in_one_memory_are_measured_before_it_is_written_to(traced: Traced) -> None:
    x = torch.ones(3)

    def run() -> None:
        torch._foreach_mul_([x, x], 2.0)
        x.add_(1)

    assert [event.stats.maximum for event in traced(nn.Module(), run)] == [4.0, 4.0, 5.0]


def test_what_is_given_by_name_to_be_written_to_is_an_output(traced: Traced) -> None:
    x = torch.ones(4)
    (event,) = traced(nn.Module(), lambda: torch.mul(x, 2.0, out=torch.empty(4)))
    assert (event.key[2], event.stats.maximum) == ("aten.mul", 2.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(1000),
        lambda: torch.ones(4).new_empty(1000),
        lambda: torch.empty_like(torch.ones(4)),
        lambda: torch.empty_strided((10, 10), (10, 1)),
        lambda: torch.ones(4).new_empty_strided((10, 10), (10, 1)),
        lambda: torch.empty_permuted((10, 10), (1, 0)),
        lambda: torch.empty(0).resize_as_(torch.ones(4)),
    ],
)
def test_uninitialised_memory_is_no_output(traced: Traced, make: Callable[[], Tensor]) -> None:
    events = traced(nn.Module(), make)
    assert {event.key[2] for event in events} <= {"aten.ones"}


def test_views_and_integers_are_no_outputs(traced: Traced) -> None:
    x = torch.ones(4, 4)
    events = traced(nn.Module(), lambda: (x.t(), x[1:], x.reshape(16), x.detach(), x.argmax(), torch.arange(4)))
    assert events == []


def test_no_numbers_are_no_output(traced: Traced) -> None:
    x = torch.ones(4)
    assert traced(nn.Module(), lambda: (x[:0].mul_(2), x[:0] * 2)) == []


def test_what_gives_no_tensor_has_no_outputs_within(traced: Traced) -> None:
    """Of two that are not equal it takes the difference."""
    x = torch.ones(4)
    assert traced(nn.Module(), lambda: torch.allclose(x, x)) == []


def test_what_is_done_beside_the_model_is_not_recorded(traced: Traced) -> None:
    def run() -> None:
        with unseen():
            torch.zeros(2)
        torch.ones(2)

    assert [event.key[2] for event in traced(nn.Module(), run)] == ["aten.ones"]


def test_casts_are_outputs(traced: Traced) -> None:
    x = torch.tensor([70_000.0, 1.0])
    (event,) = traced(nn.Module(), x.half)
    assert (event.key[2], event.dtype, event.stats.inf, event.unbounded) == ("aten._to_copy", "F16", 1, False)


def test_an_infinity_that_was_asked_for_is_marked(traced: Traced) -> None:
    x = torch.zeros(4)
    events = traced(nn.Module(), lambda: x.masked_fill(x == 0, -INF) + torch.full((4,), 1.0))
    assert [event.unbounded for event in events] == [True, False, False]


def test_an_infinity_that_is_multiplied_by_is_marked(traced: Traced) -> None:
    """By its schema the operation takes two tensors."""
    x = torch.ones(4)
    events = traced(nn.Module(), lambda: (x * INF, (x * 2).mul_(-INF)))
    assert [event.unbounded for event in events] == [True, False, True]


def test_a_number_that_is_added_is_no_source(traced: Traced) -> None:
    """Torch makes a tensor of it, which may lie where another one lay that was measured."""
    x = torch.ones(2)

    def run() -> None:
        for value in (1.0, INF):
            torch.ones(()).double()
            x + value

    added = [event for event in traced(nn.Module(), run) if event.key[2] == "aten.add"]
    assert [event.inputs for event in added] == [(), ()]
    assert [event.unbounded for event in added] == [False, True]


def test_a_constant_has_no_source(traced: Traced) -> None:
    """Its memory may be that of an output that is gone."""

    def run() -> None:
        for _ in range(20):
            torch.ones(2) * 2  # gone at once
            torch.tensor([1.0, 2.0]) * 3

    products = [event for event in traced(nn.Module(), run) if event.key[2] == "aten.mul"]
    assert [event.inputs for event in products if event.stats.maximum == 6.0] == [()] * 20


def test_batches_do_not_change_the_figures(traced: Traced) -> None:
    """More outputs than a batch holds, each with its own numbers."""

    def run() -> None:
        for value in range(1, 700):
            torch.full((3,), 1.0) * value

    products = [event.stats.absmax for event in traced(nn.Module(), run) if event.key[2] == "aten.mul"]
    assert products == list(range(1, 700))


def test_what_is_noted_is_nothing_to_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an object for each output, collections took two fifths of what the trace itself took."""
    monkeypatch.setattr(recording, "launch", lambda _: Launched(()))
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


def test_the_same_place_of_another_run_has_the_same_key(traced: Traced) -> None:
    def keys(model: nn.Module) -> list[Key]:
        return [event.key for event in traced(model, lambda: model(torch.ones(2, 4)).sum().backward())]

    first = keys(Stack())
    assert first == keys(Stack())
    assert len(set(first)) == len(first)
