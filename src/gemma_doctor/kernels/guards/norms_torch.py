"""RMS norms in plain torch: the reference, and the implementation wherever Triton does not run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

__all__ = ["Form", "Operands", "backward", "differentiable", "forward"]


@dataclass(frozen=True, slots=True)
class Form:
    """Which norm.

    Attributes:
        eps: What is added to the mean square.
        dim: The axis of the channels: 1 of a map (batch, channels, height, width), or -1.
        out: The result's dtype.
        offset: What is added to the weight: 1.0 in Gemma 3.
        gelu: Whether GELU (by tanh) follows.
    """

    eps: float
    dim: int
    out: torch.dtype
    offset: float = 0.0
    gelu: bool = False


@dataclass(frozen=True, slots=True)
class Operands:
    """What a norm works on.

    Attributes:
        x: Any shape that has the form's axis.
        weight: Shape (channels,), any floating-point dtype; None for no gain.
        scale: Powers of two that x is multiplied by first, shape (channels,), float32; None for none.
    """

    x: torch.Tensor
    weight: torch.Tensor | None
    scale: torch.Tensor | None

    def wide(self, vector: torch.Tensor, form: Form) -> torch.Tensor:
        """A vector over the channels, in the dtype of the computation, to be broadcast over x."""
        behind = 0 if form.dim == -1 else self.x.dim() - form.dim - 1
        return vector.to(_wide(self.x)).view(-1, *[1] * behind)


def forward(operands: Operands, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm, and the factor 1 / sqrt(mean square + eps) of each position, which the gradient needs.

    Of 16-bit input as few bytes are read and written as torch's operations allow: they square, multiply and add in
    float32 without a copy of the input in it. Not to be differentiated (:func:`differentiable` is).
    """
    values = operands.x if operands.scale is None else operands.x * operands.wide(operands.scale, form)
    inverse = torch.rsqrt(_mean_square(values, form.dim, narrow=operands.x.dtype.itemsize == 2) + form.eps)  # noqa: PLR2004  # bytes
    gain = None if operands.weight is None else _gain(operands, operands.weight, form)
    if form.gelu:
        y = values * inverse
        y = functional.gelu(y if gain is None else y.mul_(gain), approximate="tanh").to(form.out)
    elif gain is None:
        y = torch.mul(values, inverse, out=torch.empty_like(values, dtype=form.out))
    else:
        y = torch.mul(values * inverse, gain, out=torch.empty_like(values, dtype=form.out))
    return y, inverse


def _mean_square(values: torch.Tensor, dim: int, *, narrow: bool) -> torch.Tensor:
    """Over the channels, in float32, or in float64 for float64; of what has 16 bits, in one pass."""
    if not narrow:
        return values.square().mean(dim, keepdim=True)
    norm = torch.linalg.vector_norm(values, dim=dim, keepdim=True, dtype=torch.float32)
    return norm.square_().div_(values.shape[dim])


def differentiable(operands: Operands, form: Form) -> torch.Tensor:
    """The norm in operations that a compiler may fuse and differentiate."""
    values = _values(operands, form)
    y = values * torch.rsqrt(values.square().mean(form.dim, keepdim=True) + form.eps)
    if operands.weight is not None:
        y = y * _gain(operands, operands.weight, form)
    if form.gelu:
        y = functional.gelu(y, approximate="tanh")
    return y.to(form.out)


def backward(
    grad: torch.Tensor, operands: Operands, inverse: torch.Tensor, form: Form, *, frozen: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradients of x and of the weight.

    With n = v * inverse and g the gradient of n, that of v is (g - n * mean(g * n)) * inverse.

    Args:
        grad: Of the result.
        operands: As in the forward pass.
        inverse: What :func:`forward` returned with the result.
        form: Which norm.
        frozen: Whether nobody wants the weight's.
    """
    normal = _values(operands, form) * inverse
    grad = grad.to(normal.dtype)
    gain = None if operands.weight is None else _gain(operands, operands.weight, form)
    if form.gelu:
        grad = torch.ops.aten.gelu_backward(grad, normal if gain is None else normal * gain, approximate="tanh")
    dw = None
    if operands.weight is not None and not frozen:
        others = [axis for axis in range(grad.dim()) if axis != form.dim % grad.dim()]
        dw = (grad * normal).sum(others).to(operands.weight.dtype)
    if gain is not None:
        grad = grad * gain
    dx = (grad - normal * (grad * normal).mean(form.dim, keepdim=True)) * inverse
    if operands.scale is not None:
        dx = dx * operands.wide(operands.scale, form)
    return dx.to(operands.x.dtype), dw


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _values(operands: Operands, form: Form) -> torch.Tensor:
    values = operands.x.to(_wide(operands.x))
    return values if operands.scale is None else values * operands.wide(operands.scale, form)


def _gain(operands: Operands, weight: torch.Tensor, form: Form) -> torch.Tensor:
    gain = operands.wide(weight, form)
    return gain + form.offset if form.offset else gain
