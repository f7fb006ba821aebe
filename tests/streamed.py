"""Modules as small as what a test of streaming is about, and steps of them: on a device, or spread by accelerate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import accelerate
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gemma_doctor.verify.step import Step, forward, gradients
from gemma_doctor.verify.streaming import Streamed, stream, streamed

CPU = torch.device("cpu")


class Copies(Mapping[str, Tensor]):
    """Weights that are copied each time they are read, as from a disk or to another device."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


class Product(nn.Module):  # type: ignore[misc]  # torch is not read by the type checker
    """A layer: what it does with its weight is given."""

    def __init__(self, weight: Tensor, what: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> None:
        super().__init__()
        self.weight, self.what = nn.Parameter(weight), what

    def forward(self, x: Tensor) -> Tensor:
        """The layer."""
        return self.what(x, self.weight)


class Model(nn.Module):  # type: ignore[misc]  # as above
    """Layers, and how they are joined; the loss is the mean of the squares of what it returns."""

    def __init__(self, how: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.how, self.layers = how, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """All of it."""
        return (self.how(x, *self.layers),)


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def offloaded(model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy of it whose weights accelerate keeps; these, if they are given."""
    one = copy.deepcopy(model)
    accelerate.cpu_offload(one, CPU, state_dict=Copies(weights or one.state_dict()))
    stream(one, CPU)
    return one


def streaming(model: nn.Module) -> Streamed:
    found = streamed(model)
    assert found is not None
    return found


def run(model: nn.Module, x: Tensor) -> Step:
    return forward(model, {"x": x}, CPU, amp=False)


def twice(model: nn.Module, x: Tensor) -> list[object]:
    """Two steps, each with two passes backward: what comes out, what comes to ``x``, and all gradients' figures."""
    seen: list[object] = []
    for _ in range(2):
        x = x.detach().requires_grad_()
        step = run(model, x)
        seen += [step.logits.tolist(), float(step.loss.detach())]
        for scale in (1.0, 4.0):
            seen.append(gradients(model, step.loss, scale))
            seen.append(None if x.grad is None else x.grad.view(torch.uint8).tolist())
            x.grad = None
    return seen


def again(x: Tensor, *layers: nn.Module) -> Tensor:
    """A layer that is computed again in the backward pass, between two that are not."""
    first, second, third = layers
    hidden: Tensor = checkpoint(second, first(x), use_reentrant=False)
    result: Tensor = third(hidden)
    return result


def one_by_one(x: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def shared(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    """The first layer has two uses."""
    result: Tensor = first(second(first(x)))
    return result


def unused(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    """The second use of the first layer has no part in what is returned."""
    y: Tensor = second(first(x))
    first(y)
    return y


def sliced(x: Tensor, weight: Tensor) -> Tensor:
    """A part of the weight that does not begin where it begins, as of projections that are stored as one."""
    return x @ weight[1:, 1:].t() @ weight[:-1, :-1]


def wide(x: Tensor, weight: Tensor) -> Tensor:
    """As norms do it: autograd keeps the cast, and not the weight."""
    return (x.float() @ weight.float()).to(x.dtype)


class Ignoring(torch.autograd.Function):  # type: ignore[misc]  # as above
    """Has no gradient for the weight."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        """A product."""
        ctx.save_for_backward(weight)
        return x @ weight

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        """For the input only."""
        (weight,) = ctx.saved_tensors
        return gradient @ weight.t(), None


def ignoring(x: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = Ignoring.apply(x, weight)
    return result


MODELS = {
    "a chain": Model(one_by_one, *(Product(numbers(4, 4)) for _ in range(3))),
    "computed again": Model(again, *(Product(numbers(4, 4)) for _ in range(3))),
    "two uses": Model(shared, *(Product(numbers(4, 4)) for _ in range(2))),
    "a use without a part in the loss": Model(unused, *(Product(numbers(4, 4)) for _ in range(2))),
    "a part of a weight": Model(one_by_one, Product(numbers(5, 5), sliced), Product(numbers(4, 4))),
    "a cast": Model(one_by_one, *(Product(numbers(4, 4, dtype=torch.float16), wide) for _ in range(2))),
    "no gradient": Model(one_by_one, Product(numbers(4, 4)), Product(numbers(4, 4), ignoring)),
    "not trained": Model(
        one_by_one, Product(numbers(4, 4)), Product(numbers(4, 4)).requires_grad_(requires_grad=False)
    ),
}
