"""Convolutions whose results float16 holds, whatever float16 puts in."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from gemma_doctor.kernels.guards.scaling import exponents, power_of_two

__all__ = ["Conv", "RowScale", "convolve", "in_float32"]

Conv: TypeAlias = "nn.Conv1d | nn.Conv2d"

_LEAST_EXPONENT = 24
"""2**-24 is the smallest number that float16 has."""


class RowScale:
    """What each output channel of a convolution is divided by: powers of two, or nothing at all.

    Not a buffer of the module: it would appear in no state dict but be cast with the model, to dtypes that may not hold
    it. It follows the weights' device by itself.
    """

    def __init__(self, bounds: torch.Tensor, *, together: bool = False) -> None:
        """For outputs of at most these magnitudes.

        Args:
            bounds: Shape (outputs,).
            together: Whether all outputs get the same factor.
        """
        found = exponents(bounds)
        self.largest = int(found.max())
        """The largest exponent: 0 where nothing is scaled."""
        self._factor = power_of_two(found.max().expand(found.shape) if together else found)

    def factor(self, device: torch.device) -> torch.Tensor | None:
        """2**k of each output, shape (outputs,), float32; None if all are 1."""
        if not self.largest:
            return None
        if self._factor.device != device:
            self._factor = self._factor.to(device)
        return self._factor


def convolve(conv: Conv, x: torch.Tensor, scale: RowScale) -> torch.Tensor:
    """A convolution in the dtype of its weights, each channel of its result divided by its factor.

    Convolutions of float16 are added up in float32 by every library that torch calls, so only the result must fit.
    """
    factor = scale.factor(x.device)
    if factor is None:
        return _run(conv, x, conv.weight, conv.bias)
    smaller = 1.0 / factor
    weight = _times(conv.weight, smaller.view(-1, *[1] * (conv.weight.dim() - 1)), scale)
    return _run(conv, x, weight, None if conv.bias is None else _times(conv.bias, smaller, scale))


def _times(values: torch.Tensor, smaller: torch.Tensor, scale: RowScale) -> torch.Tensor:
    """The product in the dtype of the values; in float32 first where float16 has no such factor."""
    if scale.largest <= _LEAST_EXPONENT:
        return values * smaller.to(values.dtype)
    return (values.float() * smaller).to(values.dtype)


def in_float32(conv: Conv, x: torch.Tensor) -> torch.Tensor:
    """A convolution with everything in float32, and a float32 result: always right, and slow."""
    with torch.autocast(x.device.type, enabled=False):
        bias = None if conv.bias is None else conv.bias.float()
        return _run(conv, x.float(), conv.weight.float(), bias)


def _run(conv: Conv, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What the module's own class does, with other weights."""
    run: Any = functional.conv1d if isinstance(conv, nn.Conv1d) else functional.conv2d
    padding = conv.padding
    if type(conv).__name__ == "Conv2dSame":  # timm pads like TensorFlow, by what the input's size asks for
        from timm.layers.padding import pad_same  # noqa: PLC0415  # only where timm built the model

        x, padding = pad_same(x, weight.shape[-2:], conv.stride, conv.dilation), (0, 0)
    result: torch.Tensor = run(x, weight, bias, conv.stride, padding, conv.dilation, conv.groups)
    return result
