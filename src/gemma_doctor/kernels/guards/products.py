"""Matrix products in the dtype of the weights, with inputs and results that may leave its range."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from gemma_doctor.kernels.guards.scaling import ROOM, power_of_two, row_bounds

__all__ = ["exact_product", "largest_row"]


def largest_row(linear: nn.Linear) -> float:
    """The largest sum of magnitudes over a row of the weight, a bound on |output| / max |input|; at least 1."""
    return max(1.0, float(row_bounds(linear.weight, 1.0).max()))


def exact_product(linear: nn.Linear, x: torch.Tensor, row: float) -> torch.Tensor:
    """A linear layer that neither overflows nor loses small inputs: each position is scaled to fit.

    The input is multiplied by a power of two for each position, as large as keeps both itself and every output below
    float16's range, then rounded to the dtype of the weights. The product, which is added up in float32, is multiplied
    back in float32.

    Args:
        linear: The layer.
        x: Shape (..., inputs), any floating-point dtype.
        row: What :func:`largest_row` says of the layer.

    Returns:
        Shape (..., outputs), float32 (float64 for float64). NaN and infinity in a position's input stay there.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    _, exponent = torch.frexp(wide.detach().abs().amax(-1, keepdim=True).float() * (row / ROOM))
    scaled = (wide * power_of_two(-exponent)).to(linear.weight.dtype)
    product = functional.linear(scaled, linear.weight).to(wide.dtype) * power_of_two(exponent)
    return product if linear.bias is None else product + linear.bias
