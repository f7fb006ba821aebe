"""RMS norms in float32, whatever the dtype of what they read: exact where squares leave float16's range.

One implementation in plain torch, for every device and for torch.compile, and one in Triton (:mod:`.norms_fused`) that
reads each element once and writes it once. Both have the same backward pass, and both keep nothing for it but the input
and one float32 per norm.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from gemma_doctor.kernels.devices import runs_triton
from gemma_doctor.kernels.guards import norms_torch
from gemma_doctor.kernels.guards.norms_torch import Form, Operands

__all__ = ["Form", "rms_norm"]


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, form: Form, scale: torch.Tensor | None = None
) -> torch.Tensor:
    """Normalises ``x * scale``: divides by the root of its mean square over the channels.

    With v = x * scale, y = v / sqrt(mean(v**2) + eps) * (weight + offset), and GELU of that if the form says so. All of
    it is computed in float32 (in float64 for float64) and rounded once. Zhang and Sennrich, "Root Mean Square Layer
    Normalization", 2019.

    Args:
        x: Any shape that has the form's axis.
        weight: Shape (channels,), any floating-point dtype; None for no gain.
        form: Which norm.
        scale: Powers of two, shape (channels,), float32: what the producer of x has divided each channel by.

    Returns:
        The shape of x, the form's dtype. NaN anywhere in a position's channels makes all of them NaN.
    """
    if torch.compiler.is_compiling():  # it fuses plain torch itself, and decides what to keep for the gradient
        return norms_torch.differentiable(Operands(x, weight, scale), form)
    if torch.is_grad_enabled() and (x.requires_grad or (weight is not None and weight.requires_grad)):
        result: torch.Tensor = _RmsNorm.apply(x, weight, scale, form)
    else:
        result = _way(x, form).normalise(Operands(x, weight, scale), form)
    return result


class _RmsNorm(torch.autograd.Function):  # type: ignore[misc]  # torch counts as untyped
    """The norm and its gradient, by whichever implementation fits."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # torch has no public type for it
        x: torch.Tensor,
        weight: torch.Tensor | None,
        scale: torch.Tensor | None,
        form: Form,
    ) -> torch.Tensor:
        y, inverse = _way(x, form).forward(Operands(x, weight, scale), form)
        ctx.save_for_backward(x, weight, scale, inverse)
        ctx.form = form
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:  # noqa: ANN401
        *tensors, inverse = ctx.saved_tensors
        operands, form = Operands(*tensors), ctx.form
        frozen = not ctx.needs_input_grad[1]
        dx, dw = _way(operands.x, form).backward(grad, operands, inverse, form, frozen=frozen)
        return dx, dw, None, None


def _way(x: torch.Tensor, form: Form) -> Any:  # noqa: ANN401  # one of two modules with the same functions
    """The fused kernels where they can run."""
    fused = _fused(x.device)
    return norms_torch if fused is None or not fused.fits(x, form) else fused


@cache
def _fused(device: torch.device) -> Any:  # noqa: ANN401
    if not runs_triton(device):
        return None
    from gemma_doctor.kernels.guards import norms_fused  # noqa: PLC0415  # needs Triton

    return norms_fused
