"""Statistics of tensors in memory, on a CPU or a GPU: what a trace asks of each operation's output.

* On a CPU the compiled loops of :mod:`.measure` run over the tensor's memory.
* On a GPU of compute capability 8.0 or later, where Triton is installed, one launch per dtype measures all tensors
  (:mod:`.outputs_fused`).
* On any other GPU, and for other dtypes, plain torch reductions do, with a dozen passes over each tensor instead of one
  (:mod:`.outputs_torch`).

Counts and extremes are the same everywhere. Sums of squares are the same up to rounding: a GPU adds them in another
order, and partly in float32 (relative error below 2**-17).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from gemma_doctor.kernels import outputs_torch
from gemma_doctor.kernels.devices import runs_triton
from gemma_doctor.kernels.measure import measure
from gemma_doctor.tensors import TensorStats

__all__ = ["Launched", "in_place_dtypes", "launch", "launch_in_place"]

_T = TypeVar("_T")

_NAMES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


class _Way(Protocol):
    """A module that measures tensors on a GPU."""

    def enqueue(self, tensors: Sequence[torch.Tensor], /) -> torch.Tensor: ...

    def read(self, table: torch.Tensor, counts: Sequence[int], /) -> list[TensorStats]: ...

    def nonfinite(self, table: torch.Tensor, /) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of the tensors.

    Attributes:
        indices: Which they are.
        read: How to get their records.
        nonfinite: How to learn how many NaNs and infinities each holds.
    """

    indices: Sequence[int]
    read: Callable[[], list[TensorStats]]
    nonfinite: Callable[[], list[int]]


@dataclass(frozen=True)
class Launched:
    """Measurements under way.

    Attributes:
        parts: Of which they consist.
    """

    parts: tuple[_Part, ...]

    def stats(self) -> list[TensorStats]:
        """Waits for the device.

        Returns:
            A finished record for each tensor, in their order. Activations have no rows, so figures of rows are None.
        """
        return self._records

    def nonfinite(self) -> list[int]:
        """NaNs and infinities in each tensor, in their order. Waits for the device, and makes no records."""
        return _in_order((part.indices, part.nonfinite()) for part in self.parts)

    @cached_property
    def _records(self) -> list[TensorStats]:
        return _in_order((part.indices, part.read()) for part in self.parts)


def _in_order(parts: Iterable[tuple[Sequence[int], list[_T]]]) -> list[_T]:
    found = {index: item for indices, items in parts for index, item in zip(indices, items, strict=True)}
    return [found[index] for index in range(len(found))]


def launch(tensors: Sequence[torch.Tensor]) -> Launched:
    """Starts the measurement of tensors as they are now; they may be changed or dropped afterwards.

    On a GPU it only enqueues work on the current stream and never waits for the device.

    Args:
        tensors: Floating-point tensors of one device, of any shape and strides. A dense one is read in place; of one
            that is broadcast or has gaps, the contiguous form is measured.

    Returns:
        A handle, whose ``stats()`` waits.

    Raises:
        TypeError: A tensor holds something else than float16, bfloat16, float32, float64 or an 8-bit float.
        ValueError: The tensors lie on several devices.
    """
    dtypes = {tensor.dtype for tensor in tensors}
    for dtype in dtypes:
        if dtype not in _NAMES:
            raise TypeError(f"a tensor of {dtype} cannot be measured: pass {', '.join(map(str, _NAMES))}")
    devices = {tensor.device for tensor in tensors}
    if not devices:
        return Launched(())
    if len(devices) > 1:
        raise ValueError(f"tensors of one launch lie on one device, not on {', '.join(sorted(map(str, devices)))}")
    with torch.no_grad():
        dense = [x if x.is_contiguous() and not x.is_neg() else _dense(x) for x in tensors]
        return _on_cpu(dense) if devices.pop().type == "cpu" else _on_gpu(dense, dtypes)


def in_place_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """What :func:`launch_in_place` measures on a device; nothing where there is no kernel for it."""
    if not runs_triton(device):
        return ()
    from gemma_doctor.kernels import outputs_fused  # noqa: PLC0415  # needs Triton

    return outputs_fused.DTYPES


def launch_in_place(where: npt.NDArray[np.int64], device: torch.device) -> Launched:
    """Starts the measurement of memory as it is now: :func:`launch` without asking tensors, which takes longer.

    Args:
        where: Of each tensor the address, its elements, which fill a range of memory, and its dtype, as a place in
            :func:`in_place_dtypes`; shape (3, tensors).
        device: Where the memory is.

    Returns:
        As :func:`launch`.
    """
    from gemma_doctor.kernels import outputs_fused  # noqa: PLC0415  # needs Triton

    table, counts = outputs_fused.enqueue_in_place(where, device), where[1].tolist()
    return Launched((_measured(outputs_fused, table, counts, range(len(counts))),))


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """All elements in some order, without gaps; in place where they lie so."""
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor if _is_dense(tensor) else tensor.contiguous()


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill a range of memory, each place once."""
    step = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != step:
                return False
            step *= size
    return True


def _on_cpu(tensors: list[torch.Tensor]) -> Launched:
    """Measured at once, for nobody says when the tensors change."""
    flat = ((tensor.as_strided((tensor.numel(),), (1,)), _NAMES[tensor.dtype]) for tensor in tensors)
    done = [measure(tensor.view(torch.uint8).numpy(), name, tuple(tensor.shape)) for tensor, name in flat]
    wrong = [stats.nan + stats.inf for stats in done]
    return Launched((_Part(range(len(done)), lambda: done, lambda: wrong),))


def _on_gpu(tensors: list[torch.Tensor], dtypes: set[torch.dtype]) -> Launched:
    """Of many small tensors nearly all the time is Python's: each is asked for nothing that can be done without."""
    every = range(len(tensors))
    if not runs_triton(tensors[0].device):
        return Launched((_enqueued(outputs_torch, tensors, every),))
    from gemma_doctor.kernels import outputs_fused  # noqa: PLC0415  # needs Triton

    if dtypes.issubset(outputs_fused.DTYPES):
        return Launched((_enqueued(outputs_fused, tensors, every),))
    fused = [index for index in every if tensors[index].dtype in outputs_fused.DTYPES]
    others = [index for index in every if tensors[index].dtype not in outputs_fused.DTYPES]
    ways = ((outputs_fused, fused), (outputs_torch, others))
    return Launched(tuple(_enqueued(way, [tensors[i] for i in chosen], chosen) for way, chosen in ways if chosen))


def _enqueued(way: _Way, tensors: list[torch.Tensor], indices: Sequence[int]) -> _Part:
    """The tensors of these indices, measured that way. What is kept is the table and the counts, not the tensors."""
    return _measured(way, way.enqueue(tensors), [tensor.numel() for tensor in tensors], indices)


def _measured(way: _Way, table: torch.Tensor, counts: list[int], indices: Sequence[int]) -> _Part:
    return _Part(indices, lambda: way.read(table, counts), lambda: way.nonfinite(table))
