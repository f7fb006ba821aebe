"""What the guards of every architecture share: where they stand in the model, and what a norm's gain promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn

from gemma_doctor.kernels.guards.convolutions import in_float32
from gemma_doctor.kernels.guards.replacements import Guard, Replacement, is_guarded, plan_of, replace

__all__ = ["Planner", "Site", "gain_bound", "result_dtype"]


class Site:
    """A model that is being guarded.

    Attributes:
        guard: What has been replaced so far.
        residual: Dtype of the residual stream where a guard widens it.
    """

    def __init__(self, model: nn.Module, residual: torch.dtype) -> None:
        self.guard = Guard()
        self.residual = residual
        self._names = {module: name for name, module in model.named_modules()}

    def replace(
        self, module: nn.Module, forward: Callable[..., Any], plan: object, what: str, exponent: int = 0
    ) -> None:
        """Replaces one module's ``forward`` unless that has been done, and writes it down."""
        if is_guarded(module):
            return
        replace(module, forward, plan)
        self.guard.replaced.append(Replacement(self._names.get(module, ""), what, exponent))

    def widen(self, conv: nn.Module, what: str, exponent: int = 0) -> None:
        """Makes a convolution give a float32 result when it is called as a module, as a wrapper of PEFT does."""
        self.replace(conv, _in_float32, conv, what, exponent)


Planner: TypeAlias = Callable[[Site, Any], None]


def _in_float32(self: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  # a convolution
    return in_float32(plan_of(self), x)


def gain_bound(weight: torch.Tensor, offset: float = 0.0) -> torch.Tensor:
    """The largest magnitude that each channel of an RMS norm's result can have: sqrt(channels) * |gain|.

    One value is at most the root of the sum of all squares, which is sqrt(channels) times the root of their mean.
    """
    return math.sqrt(weight.numel()) * (weight.detach().double() + offset).abs()


def result_dtype(x: torch.Tensor, weight: torch.Tensor | None) -> torch.dtype:
    """The dtype that a norm's result has in a model that computes in the dtype of its weights, or under autocast."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype if weight is None else weight.dtype
