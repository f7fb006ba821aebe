"""RMS norms by Triton: nothing wider than the input is stored, and memory is read once and written once.

Contiguous maps of very many channels are read twice, mostly from the cache the second time.

Both passes are operators of torch's dispatcher, ``gemma_doctor::rms_norm`` and ``gemma_doctor::rms_norm_backward``,
wherever something watches operations below autograd (:mod:`gemma_doctor.verify.tracing`), so that it sees what they
return. Where nothing does, the dispatcher is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import library

from gemma_doctor.kernels.devices import is_watched
from gemma_doctor.kernels.guards.norms_tiles import Plan, plan
from gemma_doctor.kernels.guards.norms_torch import Form, Operands

__all__ = ["backward", "fits", "forward", "normalise"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def fits(x: torch.Tensor, form: Form) -> bool:
    """Whether the kernels can read x as it lies."""
    return x.dtype in _DTYPES and plan(x.shape, x.stride(), form.dim) is not None


def forward(operands: Operands, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm, and the factor 1 / sqrt(mean square + eps) of each position, which the gradient needs."""
    y, inverse = _norm(operands, form, keep=True)
    return y, inverse


def normalise(operands: Operands, form: Form) -> torch.Tensor:
    """The norm alone."""
    return _norm(operands, form, keep=False)[0]


def _norm(operands: Operands, form: Form, *, keep: bool) -> Any:  # noqa: ANN401  # a pair of tensors
    run = torch.ops.gemma_doctor.rms_norm if is_watched(operands.x) else _forward
    return run(operands.x, operands.weight, operands.scale, form.eps, form.dim, form.out, form.offset, form.gelu, keep)


def backward(
    grad: torch.Tensor, operands: Operands, inverse: torch.Tensor, form: Form, *, frozen: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradients of x and of the weight (see :func:`.norms_torch.backward`)."""
    run = torch.ops.gemma_doctor.rms_norm_backward if is_watched(operands.x) else _backward
    dx, dw = run(grad, operands.x, operands.weight, operands.scale, inverse, form.dim, form.offset, form.gelu, frozen)
    return dx, dw


def _forward(  # noqa: PLR0913, PLR0917  # an operator's arguments are tensors and numbers
    x: torch.Tensor,
    weight: torch.Tensor | None,
    scale: torch.Tensor | None,
    eps: float,
    dim: int,
    out: torch.dtype,
    offset: float,
    gelu: bool,  # noqa: FBT001  # torch's schemas have no other way
    keep: bool,  # noqa: FBT001
) -> tuple[torch.Tensor, torch.Tensor | None]:
    how = _checked(x, dim)
    y = torch.empty_like(x) if out is x.dtype else torch.empty_like(x, dtype=out)
    inverse = torch.empty(how.positions, dtype=torch.float32, device=x.device) if keep else None
    numbers = (float(eps), float(offset))
    if how.before is None:
        how.forward.start((x, y, weight, scale, inverse), numbers, (gelu,))
    else:
        sums = _sums(how, x.device)
        how.before[0].start((x, scale, sums))
        how.forward.start((x, y, weight, scale, sums, inverse), numbers, (gelu,))
    return y, inverse


def _backward(  # noqa: PLR0913, PLR0917
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    scale: torch.Tensor | None,
    inverse: torch.Tensor,
    dim: int,
    offset: float,
    gelu: bool,  # noqa: FBT001
    frozen: bool,  # noqa: FBT001
) -> tuple[torch.Tensor, torch.Tensor | None]:
    how = _checked(x, dim)
    grad = torch.empty_like(x, dtype=grad.dtype).copy_(grad) if grad.stride() != x.stride() else grad
    dx, parts, dw = torch.empty_like(x), None, None
    if weight is not None and not frozen:
        parts = torch.empty((how.parts, how.channels), dtype=torch.float32, device=x.device)
    if how.before is None:
        how.backward.start((grad, x, dx, weight, parts, scale, inverse), (float(offset),), (gelu,))
    else:
        sums = _sums(how, x.device)
        how.before[1].start((grad, x, weight, scale, inverse, sums, parts), (float(offset),), (gelu,))
        how.backward.start((grad, x, dx, weight, scale, inverse, sums), (float(offset),), (gelu,))
    if weight is not None and parts is not None:
        dw = torch.empty_like(weight)
        how.adding.start((parts, dw))
    return dx, dw


def _sums(how: Plan, device: torch.device) -> torch.Tensor:
    """What each share of the channels adds up to, for each position."""
    return torch.empty((how.shares, how.positions), dtype=torch.float32, device=device)


def _checked(x: torch.Tensor, dim: int) -> Plan:
    found = plan(x.shape, x.stride(), dim)
    if found is None:
        raise ValueError(f"the fused norm cannot read strides {x.stride()}: check fits() first")
    return found


_OPERATORS = library.Library("gemma_doctor", "DEF")
_OPERATORS.define(
    "rms_norm(Tensor x, Tensor? weight, Tensor? scale, float eps, int dim, ScalarType out, float offset, bool gelu,"
    " bool keep) -> (Tensor, Tensor?)"
)
_OPERATORS.define(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? scale, Tensor inverse, int dim, float offset,"
    " bool gelu, bool frozen) -> (Tensor, Tensor?)"
)
_OPERATORS.impl("rms_norm", _forward, "CompositeExplicitAutograd")
_OPERATORS.impl("rms_norm_backward", _backward, "CompositeExplicitAutograd")
