"""RMS norms by Triton: every element is read once and written once, and nothing wider than the input is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gemma_doctor.kernels.guards import triton_norms
from gemma_doctor.kernels.guards.norms_torch import Form, Operands

__all__ = ["backward", "fits", "forward"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_MOST_CHANNELS = 8192
"""A tile holds all channels of a position: with more, it would not fit the registers."""

_ELEMENTS = ((512, 8192), (1024, 16384), (_MOST_CHANNELS, 32768))
"""Of a tile, for up to so many channels: the fewer, the more programs share a multiprocessor; but where channels are
far apart, a tile must hold enough positions of each to fill what memory delivers at once, 32 bytes."""

_EACH = 1024
"""Elements for each warp: 32 for each thread."""

_SUMS = 32
"""Vectors in which the weight's gradient is added up."""


def fits(x: torch.Tensor, form: Form) -> bool:
    """Whether the kernels can read x as it lies."""
    return x.dtype in _DTYPES and x.shape[form.dim] <= _MOST_CHANNELS and x.numel() > 0 and _layout(x, form) is not None


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a tensor lies: batch items, positions in each, whether channels are beside each other."""

    items: int
    positions: int
    channels_last: bool


def _layout(x: torch.Tensor, form: Form) -> _Layout | None:
    if form.dim == -1 or x.dim() == form.dim + 1:
        return _Layout(1, x.numel() // x.shape[-1], channels_last=True) if x.is_contiguous() else None
    if x.is_contiguous():
        return _Layout(x.shape[0], math.prod(x.shape[2:]), channels_last=False)
    if x.is_contiguous(memory_format=torch.channels_last):
        return _Layout(1, x.numel() // x.shape[1], channels_last=True)
    return None


@dataclass(frozen=True, slots=True)
class _Launch:
    """How a kernel is launched over a tensor: its grid, its tile, its threads."""

    layout: _Layout
    channels: int
    block_p: int

    @classmethod
    def over(cls, x: torch.Tensor, form: Form, tiles: int) -> _Launch:
        """For a kernel that holds so many tiles at a time."""
        layout = _layout(x, form)
        if layout is None:
            raise ValueError(f"the fused norm cannot read strides {x.stride()}: check fits() first")
        channels = x.shape[form.dim]
        elements = next(elements for most, elements in _ELEMENTS if channels <= most)
        return cls(layout, channels, min(max(1, elements // tiles // _power(channels)), _power(layout.positions)))

    @property
    def grid(self) -> tuple[int, int]:
        return -(-self.layout.positions // self.block_p), self.layout.items

    @property
    def options(self) -> dict[str, int | bool]:
        """Tile, threads and layout, by the names that the kernels and Triton have for them."""
        block_c = _power(self.channels)
        return {
            "channels_last": self.layout.channels_last,
            "block_c": block_c,
            "block_p": self.block_p,
            "num_warps": min(16, max(1, block_c * self.block_p // _EACH)),
            "enable_fp_fusion": True,
        }


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def forward(operands: Operands, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm, and the factor 1 / sqrt(mean square + eps) of each position, which the gradient needs."""
    x, weight, scale = operands.x, operands.weight, operands.scale
    launch = _Launch.over(x, form, tiles=1)
    y = torch.empty_like(x, dtype=form.out)
    inverse = torch.empty(launch.layout.items * launch.layout.positions, dtype=torch.float32, device=x.device)
    triton_norms.forward[launch.grid](
        x,
        y,
        weight,
        scale,
        inverse,
        launch.channels,
        launch.layout.positions,
        form.eps,
        form.offset,
        has_weight=weight is not None,
        has_scale=scale is not None,
        gelu=form.gelu,
        **launch.options,
    )
    return y, inverse


def backward(
    grad: torch.Tensor, operands: Operands, inverse: torch.Tensor, form: Form, *, frozen: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradients of x and of the weight (see :func:`.norms_torch.backward`)."""
    x, weight, scale = operands.x, operands.weight, operands.scale
    launch = _Launch.over(x, form, tiles=2)
    grad = torch.empty_like(x, dtype=grad.dtype).copy_(grad) if grad.stride() != x.stride() else grad
    dx = torch.empty_like(x)
    dw = None if frozen else torch.zeros((_SUMS, launch.channels), dtype=torch.float32, device=x.device)
    triton_norms.backward[launch.grid](
        grad,
        x,
        dx,
        weight,
        dw,
        scale,
        inverse,
        launch.channels,
        launch.layout.positions,
        form.offset,
        has_weight=weight is not None,
        has_scale=scale is not None,
        gelu=form.gelu,
        sums=_SUMS,
        frozen=frozen,
        **launch.options,
    )
    return dx, None if weight is None or dw is None else dw.sum(0).to(weight.dtype)
