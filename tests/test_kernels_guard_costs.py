"""What the guard costs where Triton does not run (a T4, a V100), in bytes and products, against the usual upcast.

Both run on a CPU here and are counted below autograd. The count stands for a GPU, where torch runs the same operations:
each reads its tensors once and writes its results once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision_operators  # noqa: F401  # before timm
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gemma_doctor.kernels import guard
from gemma_doctor.kernels.guards.convolutions import in_float32

MULTIPLIES = ("convolution", "mm", "attention")


class Cost(TorchDispatchMode):  # type: ignore[misc]  # torch counts as untyped
    """Counts while it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.read_and_written, self.wide_products = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        if "empty" in str(func) or func.is_view:
            return result
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        written = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.read_and_written += sum(x.nbytes for x in (*given, *written))
        if any(name in str(func) for name in MULTIPLIES):
            self.wide_products += given[0].dtype == torch.float32
        return result


def block(kind: str) -> tuple[nn.Module, torch.Tensor]:
    """A block of the encoder with its real channels, random weights; and its input."""
    from timm.layers import GELUTanh, RmsNormAct2d  # noqa: PLC0415  # after torchvision's operators
    from timm.models._efficientnet_blocks import EdgeResidual, UniversalInvertedResidual  # noqa: PLC0415

    norms = {"act_layer": GELUTanh, "norm_layer": RmsNormAct2d}
    torch.manual_seed(0)
    if kind == "edge":
        return EdgeResidual(128, 128, exp_ratio=4, **norms), torch.randn(1, 128, 32, 32)
    return UniversalInvertedResidual(640, 640, dw_kernel_size_mid=0, exp_ratio=4, **norms), torch.randn(1, 640, 16, 16)


def upcast(model: nn.Module) -> nn.Module:
    """The published way: convolutions in float32, weights and inputs cast on the fly."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.forward = _upcast(module)
    return model


def _upcast(conv: nn.Conv2d) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: in_float32(conv, x).to(x.dtype)


def cost(model: nn.Module, x: torch.Tensor) -> Cost:
    counted = Cost()
    with torch.no_grad(), counted:
        model(x)
    return counted


@pytest.mark.parametrize("kind", ["edge", "inverted"])
def test_plain_torch_moves_fewer_bytes_than_the_upcast_and_multiplies_in_float16(kind: str) -> None:
    model, x = block(kind)
    half, x = model.half().eval(), x.half()
    guarded = copy.deepcopy(half)
    guard(guarded)  # a block that stands alone: anything may come in, so every convolution is scaled
    ours, theirs = cost(guarded, x), cost(upcast(copy.deepcopy(half)), x)
    assert ours.read_and_written < theirs.read_and_written
    assert ours.wide_products == 0
    assert theirs.wide_products > 0
