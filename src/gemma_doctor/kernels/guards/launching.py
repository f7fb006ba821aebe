"""How one of Triton's kernels is launched, with as little for the host to do as Triton lets be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Launch"]

_ALIGNED = 16
"""Bytes: Triton compiles other loads where a tensor does not begin at a multiple of these."""


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """A kernel that is launched over tensors of one shape and layout.

    Attributes:
        kernel: It takes tensors (None for those that are not there), numbers, the tile, and switches.
        grid: Its programs.
        tile: Its arguments of that kind, in its order.
        warps: Of a program.
        numbers: Those that follow from the shape; the kernel takes them first.
        found: What launches the compiled kernel, by what is compiled in beside the shape.
    """

    kernel: Any
    grid: tuple[int, int, int]
    tile: tuple[int, ...]
    warps: int
    numbers: tuple[int, ...]
    found: dict[tuple[object, ...], Callable[..., None]] = field(default_factory=dict)

    def start(
        self, tensors: tuple[torch.Tensor | None, ...], numbers: tuple[float, ...] = (), switches: tuple[bool, ...] = ()
    ) -> None:
        """Launches the kernel on the first tensor's device.

        Triton looks a compiled kernel up by every argument, which takes the host longer than all the rest of a norm.
        Here it is asked once for each kind of arguments, and whenever a tensor is not aligned.

        Args:
            tensors: In the kernel's order.
            numbers: Floats that follow those of the shape.
            switches: What else is compiled in.
        """
        first: Any = tensors[0]
        arguments = (*tensors, *self.numbers, *numbers, *self.tile, *switches)
        kind = (first.device, switches, *[None if tensor is None else tensor.dtype for tensor in tensors])
        aligned = not any(tensor.data_ptr() % _ALIGNED for tensor in tensors if tensor is not None)
        with torch.cuda.device_of(first):  # Triton launches on the current device
            if aligned and kind in self.found:
                self.found[kind](*arguments)
                return
            compiled = self.kernel[self.grid](*arguments, num_warps=self.warps)
            if aligned and compiled is not None:  # Triton's interpreter compiles nothing
                self.found[kind] = compiled[self.grid]
