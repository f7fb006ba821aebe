"""Streaming of any module that accelerate spread: the numbers stay, gradients are given away, and weights are let go.

tests/streamed.py has the modules. accelerate's hooks are the real ones, with the CPU as the device that runs.
tests/test_verify_offloaded.py holds whole models to the same.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from streamed import MODELS, Model, Product, numbers, offloaded, one_by_one, run, streaming, twice
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from gemma_doctor.verify.places import Places
from gemma_doctor.verify.step import gradients
from gemma_doctor.verify.tracing import Trace


@pytest.fixture(autouse=True)
def _with_gradients() -> Iterator[None]:
    with torch.enable_grad():
        yield


@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_are_those_of_a_model_on_its_device(name: str) -> None:
    """Of two steps, each with two backward passes, to the last bit."""
    x = numbers(2, 4, dtype=MODELS[name].layers[0].weight.dtype)
    assert twice(offloaded(MODELS[name]), x) == twice(copy.deepcopy(MODELS[name]), x)


@pytest.mark.parametrize("name", MODELS)
def test_no_weight_stays_on_the_device(name: str) -> None:
    """Once a layer has run its parameters are empty again, in the backward pass too, and one where they are tied."""
    model = offloaded(MODELS[name])
    before = dict(model.named_parameters())
    twice(model, numbers(2, 4, dtype=MODELS[name].layers[0].weight.dtype))
    assert {key: (id(one), one.is_meta) for key, one in model.named_parameters()} == {
        key: (id(one), True) for key, one in before.items()
    }


def test_a_model_that_is_a_layer_itself_has_the_same_numbers() -> None:
    """The outermost module has a hook of its own, too, and accelerate joins the two."""
    x = numbers(2, 4)
    assert twice(offloaded(Product(numbers(4, 4))), x) == twice(Product(numbers(4, 4)), x)


def test_tied_weights_are_one_with_one_gradient() -> None:
    """Accelerate leaves an empty parameter for each."""
    model = Model(one_by_one, *(Product(numbers(4, 4)) for _ in range(3)))
    model.layers[2].weight = model.layers[0].weight
    model.all_tied_weights_keys = {"layers.2.weight": "layers.0.weight"}  # as a model of transformers has it
    x = numbers(2, 4)
    expected = twice(copy.deepcopy(model), x)
    spread = offloaded(model)
    assert twice(spread, x) == expected
    assert [name for name, _ in spread.named_parameters()] == ["layers.0.weight", "layers.1.weight"]


class Placed(Product):
    """Tells where it is, as parts of transformers do by their first parameter."""

    @property
    def device(self) -> torch.device:
        """Where that is."""
        where: torch.device = self.weight.device
        return where


def followed(x: Tensor, layer: Placed) -> Tensor:
    """The input goes to where the layer is."""
    result: Tensor = layer(x.to(layer.device))
    return result


def test_a_layer_says_that_it_is_where_it_runs() -> None:
    """Between its runs its parameters are nowhere."""
    model, x = Model(followed, Placed(numbers(4, 4))), numbers(2, 4)
    spread = offloaded(model)
    assert twice(spread, x) == twice(copy.deepcopy(model), x)
    assert type(spread.layers[0]).__name__ == "Placed"


@pytest.mark.parametrize("name", ["a chain", "computed again", "a cast"])
def test_what_waits_for_the_backward_pass_holds_no_weight(name: str) -> None:
    """Nor the memory of a cast of one."""
    read: list[StorageWeakRef] = []

    def seen(x: Tensor, weight: Tensor) -> Tensor:
        cast = weight.float()
        read.extend(StorageWeakRef(one.untyped_storage()) for one in (weight, cast))
        return (x.float() @ cast).to(x.dtype)

    model = offloaded(MODELS[name])
    for layer in model.layers:
        layer.what = seen
    step = run(model, numbers(2, 4, dtype=model.layers[0].weight.dtype))
    assert len(read) == 2 * len(model.layers)
    assert all(one.expired() for one in read)
    assert step.loss.requires_grad


def test_weights_that_are_kept_in_another_dtype_are_rounded_each_time() -> None:
    """As those that transformers leaves in the checkpoint's own files are: bfloat16 here, and float16 is run."""
    model = MODELS["a cast"]
    exact = copy.deepcopy(model)
    for parameter in exact.parameters():
        parameter.data = parameter.data.float().add(2**-13)
    rounded = copy.deepcopy(exact).half()
    x = numbers(2, 4, dtype=torch.float16)
    assert twice(offloaded(rounded, exact.state_dict()), x) == twice(rounded, x)


@pytest.mark.parametrize("name", ["a chain", "computed again"])
def test_each_gradient_is_given_away_as_soon_as_it_is_whole(name: str) -> None:
    """Not at the end, when all would be in memory together; in every pass of every step."""
    seen: list[str] = []

    def watched(x: Tensor, *layers: nn.Module) -> Tensor:
        def telling(layer: nn.Module, at: int) -> Callable[[Tensor], Tensor]:
            def layer_and_hook(x: Tensor) -> Tensor:
                y: Tensor = layer(x)
                if torch._C._current_graph_task_id() == -1:  # noqa: SLF001  # not when it is computed again
                    y.register_hook(lambda _: seen.append(f"output {at}"))
                return y

            return layer_and_hook

        result: Tensor = MODELS[name].how(x, *(telling(layer, at) for at, layer in enumerate(layers)))
        return result

    model = offloaded(MODELS[name])
    model.how = watched
    for _ in range(2):
        step = run(model, numbers(2, 4))
        for _ in range(2):
            seen.clear()
            with streaming(model).giving(lambda key, _: seen.append(key)):
                step.loss.backward(retain_graph=True)
            ends = [(f"output {at}", f"layers.{at}.weight") for at in (2, 1, 0)]
            assert [one for one in seen if one != "output 1" or name == "a chain"] == [
                one for pair in ends for one in pair if one != "output 1" or name == "a chain"
            ]


def test_a_backward_pass_that_fails_leaves_nothing_for_the_next() -> None:
    """Half of a weight's gradient had come."""
    model = offloaded(MODELS["two uses"])
    x = numbers(2, 4).requires_grad_()
    step = run(model, x)
    first = gradients(model, step.loss, 1.0)

    def fail(_: Tensor) -> None:
        raise MemoryError

    handle = model.layers[1].register_full_backward_hook(lambda *_: fail(x))
    step = run(model, x)
    with pytest.raises(MemoryError):
        gradients(model, step.loss, 1.0)
    handle.remove()
    assert gradients(model, run(model, x).loss, 1.0) == first


def test_who_was_given_the_gradients_is_let_go() -> None:
    """With all that it knows of them."""
    model = offloaded(MODELS["a chain"])
    step = run(model, numbers(2, 4))
    given: set[str] = set()

    def gather(name: str, _: Tensor) -> None:
        given.add(name)

    with streaming(model).giving(gather):
        step.loss.backward()
    known = weakref.ref(gather)
    del gather
    assert (known(), len(given)) == (None, 3)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "the cast itself": lambda weight: weight.float(),
    "other numbers": lambda weight: weight.float() + 1,
    "the other order": lambda weight: weight.float().t(),
    "one number, repeated": lambda weight: weight.float()[:1, :1].expand(4, 4),
    "a part of what is larger": lambda weight: torch.cat([weight.float(), weight.float()])[1:5],
    "zero of the other sign": lambda weight: torch.where(weight == 0, -0.0, weight.float()),
    "numbers without a fraction": lambda weight: weight.int(),
}


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_only_resembles_a_weight_is_kept_as_it_is(kind: str, layout: str) -> None:
    """Of as many elements, in another dtype; the gradient shows whether autograd got back what it had saved."""

    def dividing(x: Tensor, weight: Tensor) -> Tensor:
        return Reciprocal.apply(x, KINDS[kind](weight.detach())) + x @ weight.float()

    weight = numbers(4, 4, dtype=torch.float16)
    weight[1, 2] = 0
    model = Model(one_by_one, Product(weight if layout == "rows" else weight.t().contiguous().t(), dividing))
    x = numbers(4, 4)
    assert twice(offloaded(model), x) == twice(copy.deepcopy(model), x)


class Reciprocal(torch.autograd.Function):  # type: ignore[misc]  # as above
    """Passes ``x`` on; its gradient is 1 / what was saved, which tells zeros of either sign apart."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, saved: Tensor) -> Tensor:
        """The same numbers."""
        ctx.save_for_backward(saved)
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, _: Tensor) -> tuple[Tensor, None]:
        """One through it."""
        (saved,) = ctx.saved_tensors
        return 1 / saved, None


@pytest.mark.parametrize("name", ["a chain", "a cast", "a part of a weight"])
def test_a_trace_sees_the_layers_and_not_how_their_weights_come(name: str) -> None:
    """The same operations as of a model on its device, and the same weights in their chains."""
    here = told(copy.deepcopy(MODELS[name]))
    assert ("layers.0.weight",) in {weights for *_, weights in here}
    assert told(offloaded(MODELS[name])) == here


def told(model: nn.Module) -> list[tuple[object, ...]]:
    """What a trace tells of a step.

    But for copies of gradients to where autograd adds them up, which an offloaded weight does not have; and but for the
    weights in chains of backward passes through a cast: a model on its device has kept the cast, which is no weight.
    """
    places, dtype = Places.of(model), model.layers[0].weight.dtype
    with places.watching(), (trace := Trace(places)):
        step = run(model, numbers(2, 4, dtype=dtype))
        gradients(model, step.loss, 1.0)
    return [
        (event.key, event.stats, () if event.key[0] == "backward" and dtype == torch.float16 else event.weights)
        for event in trace.events()
        if event.key[::2] != ("backward", "aten.copy")
    ]


def test_names_are_of_weights_that_are_there() -> None:
    """Memory that has been given back is another tensor's next."""
    model = offloaded(MODELS["a chain"])
    with torch.no_grad():
        model(numbers(2, 4))
    assert streaming(model).names == {}
