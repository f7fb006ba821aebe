"""What the guard costs where Triton does not run (a T4, a V100): operations and bytes, against the usual upcast.

Usage: PYTHONPATH=src:tests python benchmarks/guard_costs.py

Prints a Markdown table of two blocks of Gemma 3n's image encoder with their real channels, plain, guarded and upcast
the published way. They run on a CPU, all but the convolutions, of which only sizes count, and are counted below
autograd. The count stands for a GPU, where torch runs the same operations: each is started once, reads its tensors once
and writes its results once. A block that stands alone is the worst case: anything may come in, so every convolution
that could overflow is scaled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchvision_operators  # noqa: F401  # before timm
from timm.layers import GELUTanh, RmsNormAct2d
from timm.models._efficientnet_blocks import EdgeResidual, UniversalInvertedResidual
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from gemma_doctor.kernels import guard
from gemma_doctor.kernels.guards.convolutions import in_float32

MULTIPLIES = ("convolution", "mm", "attention")
ONLY_WRITTEN = ("out", "grad_input")
"""Arguments that an operation writes without reading them."""

LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
_NORMS = {"act_layer": GELUTanh, "norm_layer": RmsNormAct2d}
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "EdgeResidual, 128 to 512 channels, 32 x 32": (
        lambda: EdgeResidual(128, 128, exp_ratio=4, **_NORMS),
        (1, 128, 32, 32),
    ),
    "UniversalInvertedResidual, 640 to 2,560 channels, 16 x 16": (
        lambda: UniversalInvertedResidual(640, 640, dw_kernel_size_mid=0, exp_ratio=4, **_NORMS),
        (1, 640, 16, 16),
    ),
}


class Cost(TorchDispatchMode):  # type: ignore[misc]  # torch counts as untyped
    """Counts while it lasts: operations, the bytes they read and write, and matrix products of float32."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.nbytes, self.wide_products = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        result = _sized(func, args) if "convolution" in str(func) else func(*args, **kwargs)
        if "empty" in str(func) or func.is_view:
            return result
        read = tree_leaves((args, [value for name, value in kwargs.items() if name not in ONLY_WRITTEN]))
        tensors = [x for x in (*read, *tree_leaves(result)) if isinstance(x, torch.Tensor)]
        self.operations += 1
        self.nbytes += sum(x.nbytes for x in tensors)
        if any(name in str(func) for name in MULTIPLIES):
            self.wide_products += tensors[0].dtype == torch.float32
        return result


def _sized(func: Any, args: Any) -> Any:  # noqa: ANN401
    """Zeros of the sizes that a convolution would give."""
    moved = tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, args)
    return tree_map(lambda x: x if x is None else torch.zeros_like(x, device="cpu"), func(*moved))


@dataclass(frozen=True, slots=True)
class Row:
    """What one pass over one block costs, each way.

    Attributes:
        block: Which.
        layout: Of its input.
        backward: Whether the backward pass counts too.
        costs: By the names of the ways.
    """

    block: str
    layout: str
    backward: bool
    costs: dict[str, Cost]


def rows() -> Iterator[Row]:
    """Every block in every layout, forward, and forward and backward."""
    for name, (build, shape) in BLOCKS.items():
        torch.manual_seed(0)
        plain = build().half().eval()
        ways = {"plain": plain, "guarded": copy.deepcopy(plain), "upcast": _upcast(copy.deepcopy(plain))}
        guard(ways["guarded"])
        for layout, memory_format in LAYOUTS.items():
            x = torch.randn(shape).half().to(memory_format=memory_format)
            for backward in (False, True):
                yield Row(name, layout, backward, {way: _cost(model, x, backward) for way, model in ways.items()})


def _cost(model: nn.Module, x: torch.Tensor, backward: bool) -> Cost:  # noqa: FBT001  # a column of the table
    x = x.detach().requires_grad_(backward)
    gradient = torch.randn_like(x)
    model.zero_grad()
    counted = Cost()
    with torch.set_grad_enabled(backward), counted:
        y = model(x)
        if backward:
            y.backward(gradient)
    return counted


def _upcast(model: nn.Module) -> nn.Module:
    """The published way: convolutions in float32, weights and inputs cast on the fly."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.forward = _upcast_forward(module)
    return model


def _upcast_forward(conv: nn.Conv2d) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: in_float32(conv, x).to(x.dtype)


def table(rows: Iterable[Row]) -> str:
    """In Markdown: operations, and megabytes."""
    lines = [
        "| operations and MB | layout | plain | guarded | upcast |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        what = f"{row.block}, {'forward and backward' if row.backward else 'forward'}"
        cells = [f"{cost.operations}, {cost.nbytes / 1e6:.1f} MB" for cost in row.costs.values()]
        lines.append(f"| {what} | {row.layout} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table(rows()), end="")
