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

    def __init__(self, bounds: torch.Tensor, weight: torch.Tensor, *, together: bool = False) -> None:
        """For outputs of at most these magnitudes.

        Args:
            bounds: Shape (outputs,).
            weight: Of the convolution; its device and dtype are made ready for.
            together: Whether all outputs get the same factor.
        """
        found = exponents(bounds)
        self.largest = int(found.max())
        """The largest exponent: 0 where nothing is scaled."""
        self._factor = power_of_two(found.max().expand(found.shape) if together else found)
        self._smaller = self._inverse(weight)

    def factor(self, device: torch.device) -> torch.Tensor | None:
        """2**k of each output, shape (outputs,), float32; None if all are 1."""
        if not self.largest:
            return None
        if self._factor.device != device:
            with torch.inference_mode(mode=False):
                self._factor = self._factor.to(device)
        return self._factor

    def scaled(self, values: torch.Tensor) -> torch.Tensor:
        """A weight, shape (outputs, ...), or a bias times 2**-k, in its dtype."""
        smaller = self._smaller
        if smaller.dtype != self._dtype(values) or smaller.device != values.device:
            smaller = self._smaller = self._inverse(values)
        return (values * smaller.view(-1, *[1] * (values.dim() - 1))).to(values.dtype)

    def _inverse(self, values: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(mode=False):  # it may be made while a model is tried out, and used to train it
            return (1.0 / self._factor).to(values.device, self._dtype(values))

    def _dtype(self, values: torch.Tensor) -> torch.dtype:
        """That of the product: float32 where float16 has no such factor."""
        return values.dtype if self.largest <= _LEAST_EXPONENT else torch.float32


def convolve(conv: Conv, x: torch.Tensor, scale: RowScale) -> torch.Tensor:
    """A convolution in the dtype of its weights, each channel of its result divided by its factor.

    Convolutions of float16 are added up in float32 by every library that torch calls, so only the result must fit.
    """
    if not scale.largest:
        return _run(conv, x, conv.weight, conv.bias)
    return _run(conv, x, scale.scaled(conv.weight), None if conv.bias is None else scale.scaled(conv.bias))


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
