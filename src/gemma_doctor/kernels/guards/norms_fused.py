"""RMS norms by Triton: nothing wider than the input is stored, and memory is read once and written once.

Both passes are operators of torch's dispatcher, ``gemma_doctor::rms_norm`` and ``gemma_doctor::rms_norm_backward``:
what watches operations below autograd (:mod:`gemma_doctor.verify.tracing`, torch's profiler) sees what they return.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

from gemma_doctor.kernels.guards import triton_norms
from gemma_doctor.kernels.guards.norms_torch import Form, Operands

__all__ = ["backward", "fits", "forward"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_MOST_CHANNELS = 8192
"""Where they come last, a program holds all channels of a position: more would not fit the registers."""

_PROGRAMS = 528
"""How many programs fill a GPU: four for each of an H100's multiprocessors."""

_LANES = 32
"""Threads of a warp."""

_WIDTHS = (64, 32, 16)
"""Positions of a program over maps: the fewer, the more programs, but below 16 memory delivers what nobody asked for."""


def fits(x: torch.Tensor, form: Form) -> bool:
    """Whether the kernels can read x as it lies."""
    return x.dtype in _DTYPES and _launch(x.shape, x.stride(), form.dim) is not None


@dataclass(frozen=True, slots=True)
class _Rows:
    """How the kernels are launched where channels come last: their tiles (see :mod:`.triton_norms`) and threads."""

    rows: int
    channels: int

    @property
    def factors(self) -> int:
        return self.rows

    def programs(self, *, backward: bool) -> int:
        blocks = -(-self.rows // self._block(backward=backward))
        return min(blocks, _PROGRAMS) if backward else blocks

    def _block(self, *, backward: bool) -> int:
        """Rows of a program, so that each thread holds some 32 elements, or half of it where there are two tensors."""
        return max(1, (_ROW_ELEMENTS >> backward) // _power(self.channels))

    def options(self, *, backward: bool) -> dict[str, int | bool]:
        head = _power(self.channels + 1) // 2
        rest = self.channels - head
        block = self._block(backward=backward)
        held = block * (head + (_power(rest) if rest else 0))
        return {
            "channels": self.channels,
            "head": head,
            "rest": _power(rest) if rest else 0,
            "block": block,
            "num_warps": min(16, max(1, _power(held // (_LANES * (_EACH >> backward))))),
        }


@dataclass(frozen=True, slots=True)
class _Maps:
    """The same for maps with a channel after the other."""

    items: int
    channels: int
    positions: int

    @property
    def factors(self) -> int:
        return self.items * self.positions

    @property
    def width(self) -> int:
        """Positions of a program."""
        return next((width for width in _WIDTHS if self._blocks(width) * self.items >= _PROGRAMS), _WIDTHS[-1])

    def _blocks(self, width: int) -> int:
        return -(-self.positions // width)

    def grid(self) -> tuple[int, int]:
        return self._blocks(self.width), self.items

    def options(self) -> dict[str, int | bool]:
        block_c = min(_power(self.channels), _MAP_ELEMENTS // self.width)
        return {"block_c": block_c, "block_p": self.width, "num_warps": _MAP_WARPS}


_ROW_ELEMENTS, _EACH = 4096, 32
"""Elements of a program where channels come last, and of each of its threads; half as many in the backward pass."""

_MAP_ELEMENTS, _MAP_WARPS = 4096, 8
"""Elements of a tile of maps, and the warps that share it."""


@cache
def _launch(shape: torch.Size, strides: tuple[int, ...], dim: int) -> _Rows | _Maps | None:
    """How to go through a tensor; None if it is empty, or has too many channels or gaps."""
    count, channels = math.prod(shape), shape[dim]
    if not count or channels > _MOST_CHANNELS:
        return None
    last = dim == -1 or len(shape) == dim + 1
    order = [*range(len(shape))] if last else [axis for axis in range(len(shape)) if axis != dim] + [dim]
    if _lies(shape, strides, order):
        return _Rows(count // channels, channels)
    if dim == 1 and _lies(shape, strides, [*range(len(shape))]):
        return _Maps(shape[0], channels, math.prod(shape[2:]))
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
    found: tuple[torch.Tensor, torch.Tensor] = torch.ops.gemma_doctor.rms_norm(
        operands.x, operands.weight, operands.scale, form.eps, form.dim, form.out, form.offset, form.gelu
    )
    return found


def backward(
    grad: torch.Tensor, operands: Operands, inverse: torch.Tensor, form: Form, *, frozen: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradients of x and of the weight (see :func:`.norms_torch.backward`)."""
    frozen = frozen or operands.weight is None
    dx, parts = torch.ops.gemma_doctor.rms_norm_backward(
        grad, operands.x, operands.weight, operands.scale, inverse, form.dim, form.offset, form.gelu, frozen
    )
    return dx, None if operands.weight is None or parts is None else parts.sum(0).to(operands.weight.dtype)


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    scale: torch.Tensor | None,
    eps: float,
    dim: int,
    out: torch.dtype,
    offset: float,
    gelu: bool,  # noqa: FBT001  # torch's schemas have no other way
) -> tuple[torch.Tensor, torch.Tensor]:
    launch = _checked(x, dim)
    y = torch.empty_like(x, dtype=out)
    inverse = torch.empty(launch.factors, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        if isinstance(launch, _Rows):
            triton_norms.rows_forward[(launch.programs(backward=False),)](
                x, y, weight, scale, inverse, launch.rows, eps, offset, gelu=gelu, **launch.options(backward=False)
            )
        else:
            triton_norms.maps_forward[launch.grid()](
                x, y, weight, scale, inverse, launch.channels, launch.positions, eps, offset, gelu=gelu,
                **launch.options(),
            )  # fmt: skip
    return y, inverse


def _backward(
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
    grid = (launch.programs(backward=True), 1) if isinstance(launch, _Rows) else launch.grid()
    dw = None
    if not frozen:
        dw = torch.empty((grid[0] * grid[1], launch.channels), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        if isinstance(launch, _Rows):
            triton_norms.rows_backward[grid](
                grad, x, dx, weight, dw, scale, inverse, launch.rows, offset, gelu=gelu,
                **launch.options(backward=True),
            )  # fmt: skip
        else:
            triton_norms.maps_backward[grid](
                grad, x, dx, weight, dw, scale, inverse, launch.channels, launch.positions, offset, gelu=gelu,
                **launch.options(),
            )  # fmt: skip
    return dx, dw


def _checked(x: torch.Tensor, dim: int) -> _Rows | _Maps:
    launch = _launch(x.shape, x.stride(), dim)
    if launch is None:
        raise ValueError(f"the fused norm cannot read strides {x.stride()}: check fits() first")
    return launch


_OPERATORS = torch.library.Library("gemma_doctor", "DEF")
_OPERATORS.define(
    "rms_norm(Tensor x, Tensor? weight, Tensor? scale, float eps, int dim, ScalarType out, float offset, bool gelu)"
    " -> (Tensor, Tensor)"
)
_OPERATORS.define(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? scale, Tensor inverse, int dim, float offset,"
    " bool gelu, bool frozen) -> (Tensor, Tensor?)"
)
_OPERATORS.impl("rms_norm", _forward, "CompositeExplicitAutograd")
_OPERATORS.impl("rms_norm_backward", _backward, "CompositeExplicitAutograd")
