"""Powers of two: how far a convolution or a product must be scaled down so that float16 holds its result.

A sum of products is at most the sum of the magnitudes of one factor times the largest magnitude of the other
(Hoelder's inequality). A factor 2**-k changes no bit of a float but its exponent, so a result that is scaled down and
multiplied by 2**k in float32 later is the same, unless it falls among float16's subnormals.
"""

from __future__ import annotations

import torch

from gemma_doctor.tensors import FP16_MAX

__all__ = ["ROOM", "exponents", "power_of_two", "row_bounds"]

ROOM = 2.0**15
"""What results are kept below: half of float16's range, so that neither the rounding of a long sum nor weights that
training moves a little, since the exponents were chosen, lead out of it."""


def row_bounds(weight: torch.Tensor, largest: torch.Tensor | float, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The largest magnitude that each output of a convolution or linear layer can have.

    Args:
        weight: Shape (outputs, inputs of its group, ...).
        largest: Bound on the inputs' magnitudes: one for all, or shape (inputs,).
        bias: Shape (outputs,).

    Returns:
        Shape (outputs,), float64.
    """
    rows = weight.detach().double().abs().flatten(2).sum(2) if weight.dim() > 2 else weight.detach().double().abs()  # noqa: PLR2004
    if isinstance(largest, torch.Tensor):
        groups = largest.numel() // rows.shape[1]
        per_row = largest.double().view(groups, -1).repeat_interleave(rows.shape[0] // groups, 0)
        bound = (rows * per_row.clamp(max=FP16_MAX)).sum(1)
    else:
        bound = rows.sum(1) * min(largest, FP16_MAX)
    return bound if bias is None else bound + bias.detach().double().abs()


def exponents(bounds: torch.Tensor) -> torch.Tensor:
    """The smallest k >= 0 for which ``bound * 2**-k <= ROOM``; int32, and 0 for a bound that is not finite."""
    mantissa, exponent = torch.frexp(bounds.nan_to_num(0.0, 0.0, 0.0) / ROOM)
    return (exponent - (mantissa == 0.5).int()).clamp(min=0)  # noqa: PLR2004  # a power of two itself needs one less


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """``2.0**exponent`` as float32, exact on every device: the exponent is put in its place in the bits.

    Args:
        exponent: int32; held to float32's normal range.
    """
    return ((exponent.clamp(-126, 127) + 127) << 23).view(torch.float32)
