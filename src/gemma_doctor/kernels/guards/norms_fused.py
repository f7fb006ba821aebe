"""RMS norms by Triton: nothing wider than the input is stored, and memory is read once and written once.

Both passes are operators of torch's dispatcher, ``gemma_doctor::rms_norm`` and ``gemma_doctor::rms_norm_backward``,
wherever something watches operations below autograd (:mod:`gemma_doctor.verify.tracing`), so that it sees what they
return. Where nothing does, the dispatcher is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import library
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from gemma_doctor.kernels.guards import triton_norms
from gemma_doctor.kernels.guards.norms_torch import Form, Operands

__all__ = ["backward", "fits", "forward", "normalise"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_MOST_CHANNELS = 8192
"""A program holds all channels of a position: more would not fit the registers."""

_ENOUGH = 264
"""Programs that fill a GPU: two for each of an H100's multiprocessors."""

_WARPS = 2112
"""Warps that a GPU has registers for where each thread takes 128 of them: 16 for each of an H100's multiprocessors."""

_LANES = 32
"""Threads of a warp."""

_WIDTHS = (64, 32, 16, 8)
"""Positions of a program over maps: the fewer, the more programs. A thread reads 8 of 16 bits at once."""

_MANY = 2048
"""Channels of a row from which on a program and its threads take more. This and the tables below were chosen by
measuring on an H100 (``benchmarks/gpu_norm_tiles.py``)."""


def fits(x: torch.Tensor, form: Form) -> bool:
    """Whether the kernels can read x as it lies."""
    return x.dtype in _DTYPES and _launch(x.shape, x.stride(), form.dim) is not None


@dataclass(frozen=True, slots=True)
class _Pass:
    """How one kernel is launched: its grid, and its tile and warps by the names that it and Triton have for them."""

    grid: tuple[int, int]
    options: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Launch:
    """How both kernels are launched over a tensor of one shape and layout.

    Attributes:
        maps: Whether a channel lies after the other.
        channels: How many there are.
        items: The batch, if these are maps; else 1.
        positions: How many there are in an item.
        forward: The kernel that normalises.
        backward: That of the gradients.
    """

    maps: bool
    channels: int
    items: int
    positions: int
    forward: _Pass
    backward: _Pass


def _over_rows(rows: int, channels: int) -> _Launch:
    """Where channels come last."""
    forward, backward = (_rows_pass(rows, channels, backward=backward) for backward in (False, True))
    return _Launch(False, channels, 1, rows, forward, backward)  # noqa: FBT003  # the fields say what


def _rows_pass(rows: int, channels: int, *, backward: bool) -> _Pass:
    """Each thread holds so many elements of a tensor that the registers suffice, and warps are many."""
    elements, each = _BACKWARD if backward else _FORWARD[channels > _MANY]
    block = max(1, elements // _power(channels))
    return _pass((-(-rows // block), 1), channels, block, _warps(channels * block, each), backward=backward)


_FORWARD = ((2048, 16), (4096, 32))
"""Elements of a program and of each thread, for few channels and for many."""

_BACKWARD = (2048, 16)
"""The same in the backward pass."""


def _over_maps(items: int, channels: int, positions: int) -> _Launch:
    """Where a channel lies after the other."""
    forward, backward = (_maps_pass(items, channels, positions, backward=backward) for backward in (False, True))
    return _Launch(True, channels, items, positions, forward, backward)  # noqa: FBT003


def _maps_pass(items: int, channels: int, positions: int, *, backward: bool) -> _Pass:
    """As many positions as leave enough programs, and no more elements than the registers hold."""
    elements, each = _BACKWARD_MAPS if backward else _FORWARD_MAPS
    grids = {width: (-(-positions // width), items) for width in _WIDTHS}
    fitting = (
        width for width, grid in grids.items() if math.prod(grid) >= _ENOUGH and width * _power(channels) <= elements
    )
    width = next(fitting, _WIDTHS[-1])
    return _pass(grids[width], channels, width, _warps(channels * width, each), backward=backward)


_FORWARD_MAPS, _BACKWARD_MAPS = (16384, 32), (16384, 32)
"""Elements of a program, at most, and of each thread."""


def _pass(grid: tuple[int, int], channels: int, block: int, warps: int, *, backward: bool) -> _Pass:
    """A program for each block of positions, or in the backward pass for several: it adds the weight's gradient up."""
    head, rest = _tiles(channels)
    if backward:
        grid = (min(math.prod(grid), _WARPS // warps), 1)
    return _Pass(grid, {"channels": channels, "head": head, "rest": rest, "block": block, "num_warps": warps})


def _tiles(channels: int) -> tuple[int, int]:
    """Two powers of two that hold so many channels, the second 0 where the first does."""
    head = _power(channels + 1) // 2
    return head, _power(channels - head) if channels > head else 0


def _warps(elements: int, each: int) -> int:
    """A power of two."""
    return min(16, max(1, _power(elements // (_LANES * each))))


@cache
def _launch(shape: torch.Size, strides: tuple[int, ...], dim: int) -> _Launch | None:
    """How to go through a tensor; None if it is empty, or has too many channels or gaps."""
    count, channels = math.prod(shape), shape[dim]
    if not count or channels > _MOST_CHANNELS:
        return None
    last = dim == -1 or len(shape) == dim + 1
    order = [*range(len(shape))] if last else [axis for axis in range(len(shape)) if axis != dim] + [dim]
    if _lies(shape, strides, order):
        return _over_rows(count // channels, channels)
    if dim == 1 and _lies(shape, strides, [*range(len(shape))]):
        return _over_maps(shape[0], channels, math.prod(shape[2:]))
    return None


def _lies(shape: torch.Size, strides: tuple[int, ...], order: list[int]) -> bool:
    """Whether a tensor fills memory without gaps, its axes in that order from the widest steps to the smallest."""
    step = 1
    for axis in reversed(order):
        if shape[axis] != 1 and strides[axis] != step:
            return False
        step *= shape[axis]
    return True


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def forward(operands: Operands, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm, and the factor 1 / sqrt(mean square + eps) of each position, which the gradient needs."""
    y, inverse = _norm(operands, form, keep=True)
    return y, inverse


def normalise(operands: Operands, form: Form) -> torch.Tensor:
    """The norm alone."""
    return _norm(operands, form, keep=False)[0]


def _norm(operands: Operands, form: Form, *, keep: bool) -> Any:  # noqa: ANN401  # a pair of tensors
    run = torch.ops.gemma_doctor.rms_norm if _is_watched(operands.x) else _forward
    return run(operands.x, operands.weight, operands.scale, form.eps, form.dim, form.out, form.offset, form.gelu, keep)


def backward(
    grad: torch.Tensor, operands: Operands, inverse: torch.Tensor, form: Form, *, frozen: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradients of x and of the weight (see :func:`.norms_torch.backward`)."""
    frozen = frozen or operands.weight is None
    run = torch.ops.gemma_doctor.rms_norm_backward if _is_watched(operands.x) else _backward
    dx, parts = run(
        grad, operands.x, operands.weight, operands.scale, inverse, form.dim, form.offset, form.gelu, frozen
    )
    return dx, None if operands.weight is None or parts is None else parts.sum(0).to(operands.weight.dtype)


def _is_watched(x: torch.Tensor) -> bool:
    """Whether the kernels must be run as operators. That takes the host longer than all the rest of a norm."""
    return is_in_torch_dispatch_mode() or type(x) is not torch.Tensor


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
    launch = _checked(x, dim)
    y = torch.empty_like(x) if out is x.dtype else torch.empty_like(x, dtype=out)
    inverse = torch.empty(launch.items * launch.positions, dtype=torch.float32, device=x.device) if keep else None
    with torch.cuda.device_of(x):  # Triton launches on the current device
        if launch.maps:
            triton_norms.maps_forward[launch.forward.grid](
                x, y, weight, scale, inverse, launch.positions, eps, offset, gelu=gelu, **launch.forward.options
            )
        else:
            triton_norms.rows_forward[launch.forward.grid](
                x, y, weight, scale, inverse, launch.positions, eps, offset, gelu=gelu, **launch.forward.options
            )
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
    launch = _checked(x, dim)
    grad = torch.empty_like(x, dtype=grad.dtype).copy_(grad) if grad.stride() != x.stride() else grad
    dx = torch.empty_like(x)
    grid = launch.backward.grid
    dw = None
    if not frozen:
        dw = torch.empty((grid[0], launch.channels), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        if launch.maps:
            triton_norms.maps_backward[grid](
                grad, x, dx, weight, dw, scale, inverse, launch.items, launch.positions, offset, gelu=gelu,
                **launch.backward.options,
            )  # fmt: skip
        else:
            triton_norms.rows_backward[grid](
                grad, x, dx, weight, dw, scale, inverse, launch.positions, offset, gelu=gelu,
                **launch.backward.options,
            )  # fmt: skip
    return dx, dw


def _checked(x: torch.Tensor, dim: int) -> _Launch:
    launch = _launch(x.shape, x.stride(), dim)
    if launch is None:
        raise ValueError(f"the fused norm cannot read strides {x.stride()}: check fits() first")
    return launch


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
