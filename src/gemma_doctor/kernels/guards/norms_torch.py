"""RMS norms in plain torch: the reference, and the implementation wherever Triton does not run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

__all__ = ["Form", "Operands", "backward", "differentiable", "forward", "normalise"]


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

    def along(self, vector: torch.Tensor, form: Form) -> torch.Tensor:
        """A vector over the channels, to be broadcast over x."""
        behind = 0 if form.dim == -1 else self.x.dim() - form.dim - 1
        return vector.view(-1, *[1] * behind)


def forward(operands: Operands, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm, and the factor 1 / sqrt(mean square + eps) of each position, which the gradient needs.

    Written for 16-bit input on a GPU that runs one operation after the other: each of them multiplies in float32
    without a copy of its input in it, and writes into a buffer of its own where there is one. Not to be differentiated
    (:func:`differentiable` is).
    """
    x, factors = operands.x, _factors(operands, form)
    values = x if operands.scale is None else x * operands.along(operands.scale, form)
    inverse = _inverse(values, form, narrow=x.dtype.itemsize == 2)  # noqa: PLR2004  # bytes
    if factors is None and not form.gelu:
        return torch.mul(x, inverse, out=torch.empty_like(x, dtype=form.out)), inverse
    y = x * inverse if values is x else torch.mul(x, inverse, out=values)
    if form.gelu:
        y = y if factors is None else y.mul_(factors)
        return torch.ops.aten.gelu_(y, approximate="tanh").to(form.out), inverse
    return torch.mul(y, factors, out=torch.empty_like(y, dtype=form.out)), inverse


def normalise(operands: Operands, form: Form) -> torch.Tensor:
    """The norm alone."""
    return forward(operands, form)[0]


def _inverse(values: torch.Tensor, form: Form, *, narrow: bool) -> torch.Tensor:
    """1 / sqrt(mean square + eps) over the channels, in float32, or in float64 for float64.

    Of what has 16 bits, in one pass and without their squares in memory; else bit for bit as timm's norms have it.
    """
    if not narrow:
        return values.square().mean(form.dim, keepdim=True).add_(form.eps).rsqrt_()
    norm = torch.linalg.vector_norm(values, dim=form.dim, keepdim=True, dtype=torch.float32)
    return torch.rsub(norm.square_(), form.eps, alpha=-1.0 / values.shape[form.dim]).rsqrt_()


def differentiable(operands: Operands, form: Form) -> torch.Tensor:
    """The norm in operations that a compiler may fuse and differentiate."""
    values = operands.x.to(_wide(operands.x))
    values = values if operands.scale is None else values * operands.along(operands.scale, form)
    y = values * torch.rsqrt(values.square().mean(form.dim, keepdim=True) + form.eps)
    gain = _gain(operands, form)
    y = y if gain is None else y * gain
    if form.gelu:
        y = functional.gelu(y, approximate="tanh")
    return y.to(form.out)


def backward(
    grad: torch.Tensor, operands: Operands, inverse: torch.Tensor, form: Form, *, frozen: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradients of x and of the weight.

    With n = x * scale * inverse and h the gradient of n, that of x is (h - n * mean(h * n)) * inverse * scale. In the
    order of :func:`forward`'s operations, and as sparing.

    Args:
        grad: Of the result.
        operands: As in the forward pass.
        inverse: What :func:`forward` returned with the result.
        form: Which norm.
        frozen: Whether nobody wants the weight's.
    """
    x, factors = operands.x, _factors(operands, form)
    slope = _before_gelu(grad, operands, inverse, factors).mul_(inverse) if form.gelu else grad * inverse
    products = slope * x
    dw = None
    if operands.weight is not None and not frozen:
        dw = _of_weight(products, operands, form).to(operands.weight.dtype)
    if factors is not None:
        slope.mul_(factors)
        products.mul_(factors)
    mean = products.mean(form.dim, keepdim=True).mul_(inverse).mul_(inverse)
    squared = x if operands.scale is None else x * operands.along(operands.scale.square(), form)
    return torch.addcmul(slope, squared, mean, value=-1.0, out=torch.empty_like(x)), dw


def _before_gelu(
    grad: torch.Tensor, operands: Operands, inverse: torch.Tensor, factors: torch.Tensor | None
) -> torch.Tensor:
    """The gradient of what GELU took."""
    z = operands.x * inverse
    if factors is not None:
        z.mul_(factors)
    return torch.ops.aten.gelu_backward(grad, z, approximate="tanh", grad_input=z)


def _of_weight(products: torch.Tensor, operands: Operands, form: Form) -> torch.Tensor:
    """The weight's gradient, from the products of x and the gradient of x * inverse * weight."""
    sums = products.sum([axis for axis in range(products.dim()) if axis != form.dim % products.dim()])
    return sums if operands.scale is None else sums.mul_(operands.scale)


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _gain(operands: Operands, form: Form) -> torch.Tensor | None:
    """What each channel is multiplied by. Torch multiplies float16 and float32 as float32, so it need not be cast."""
    if operands.weight is None:
        return None
    gain = operands.along(operands.weight, form)
    return gain.to(_wide(operands.x)) + form.offset if form.offset else gain


def _factors(operands: Operands, form: Form) -> torch.Tensor | None:
    """Gain times scale of each channel, to be broadcast over x; None for neither."""
    gain = _gain(operands, form)
    if operands.scale is None:
        return gain
    scale = operands.along(operands.scale, form)
    return scale if gain is None else gain * scale
