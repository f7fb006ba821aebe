"""Statistics of many tensors on a GPU: one launch per dtype, however many tensors there are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

from gemma_doctor.kernels import triton_outputs
from gemma_doctor.kernels.formats import FLOATS
from gemma_doctor.kernels.pieces import Grain, cut
from gemma_doctor.tensors import TensorStats

__all__ = ["DTYPES", "enqueue", "enqueue_in_place", "nonfinite", "read"]

_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}

DTYPES = tuple(_NAMES)
"""What the kernel measures."""

_KINDS = {dtype: kind for kind, dtype in enumerate(DTYPES)}
_ITEMSIZES = np.array([dtype.itemsize for dtype in DTYPES])

_VECTOR = 16
"""Bytes of the widest load of one thread; the kernel's whole tiles begin at multiples of it."""

_WARPS, _LOADS = 8, 4
"""Of a program; and reads of each thread that are under way at a time."""

_TILE = 32 * _WARPS * _VECTOR
"""Bytes of a tile: one read of each thread."""

_PROGRAMS = 396
"""Pieces that a launch is cut into where that leaves them moderate: three for each of an H100's multiprocessors."""

_PIECE = 128 * _TILE
"""Most bytes of a piece: each lane adds so many squares in float32, which bounds the sum's relative error by 2**-17."""


def enqueue(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Enqueues the measurement of tensors on the device's current stream; waits for nothing.

    Args:
        tensors: Dense, of one device, of :data:`DTYPES`.

    Returns:
        The table, shape (tensors, 9), int64, for :func:`read`.
    """
    addresses = [tensor.data_ptr() for tensor in tensors]
    sizes = [tensor.numel() for tensor in tensors]
    kinds = [_KINDS[tensor.dtype] for tensor in tensors]
    return enqueue_in_place(np.array([addresses, sizes, kinds], np.int64), tensors[0].device)


def enqueue_in_place(where: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """What :func:`enqueue` does, with what it asks the tensors for.

    Args:
        where: Of each tensor the address, the elements, and the dtype's place in :data:`DTYPES`; shape (3, tensors).
        device: Where they are.

    Returns:
        As :func:`enqueue`.
    """
    grain = Grain(_VECTOR, _PROGRAMS, _TILE * _LOADS, _PIECE)
    pieces, starts = cut(where[0], where[1], where[2], _ITEMSIZES, grain)
    table, work = _sent(where.shape[1], pieces, device)
    with torch.cuda.device_of(table):  # Triton launches on the current device
        for dtype, start, stop in zip(DTYPES, starts.tolist(), starts[1:].tolist(), strict=False):
            if start < stop:
                _launch(work[3 * start :], stop - start, table, dtype)
    return table


def _sent(number: int, pieces: npt.NDArray[np.int64], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """An empty table and what is to be done, in one copy: torch keeps the pinned memory until the device has it."""
    end = number * triton_outputs.COLUMNS.value
    held = torch.empty(end + pieces.size, dtype=torch.int64, pin_memory=device.type == "cuda")
    values = held.numpy()
    values[:end] = 0
    values[end:] = pieces.reshape(-1)
    sent = held.to(device, non_blocking=True)
    return sent[:end].view(number, -1), sent[end:]


def read(table: torch.Tensor, counts: Sequence[int]) -> list[TensorStats]:
    """The records of a table; waits for the device.

    Args:
        table: What :func:`enqueue` returned.
        counts: Elements of each tensor.
    """
    lines = table.cpu()
    squares = lines.view(torch.float64)[:, triton_outputs.SQUARES.value].tolist()
    return [_record(*line) for line in zip(lines.tolist(), squares, counts, strict=True)]


def nonfinite(table: torch.Tensor) -> list[int]:
    """NaNs and infinities of each line of a table; waits for the device."""
    lines = table.cpu()
    counts: list[int] = (lines[:, triton_outputs.NAN.value] + lines[:, triton_outputs.INF.value]).tolist()
    return counts


def _record(line: list[int], squares: float, count: int) -> TensorStats:
    nan, inf, zeros, overflow, below_kept, below_normal, most, least, *_ = line
    return TensorStats(
        count=count,
        nan=nan,
        inf=inf,
        zeros=zeros,
        fp16_overflow=overflow,
        fp16_subnormal=below_normal - below_kept,
        fp16_underflow=below_kept - zeros,
        minimum=_of_key((1 << 31) - least) if least else None,
        maximum=_of_key(most - 1 - (1 << 31)) if most else None,
        squares=Fraction(squares),
    )


def _of_key(key: int) -> float:
    """The float32 of a key; 0.0 for a zero of either sign."""
    bits = key if key >= 0 else key ^ 0x7FFFFFFF
    return float(np.int32(bits).view(np.float32)) + 0.0


def _launch(work: torch.Tensor, pieces: int, table: torch.Tensor, dtype: torch.dtype) -> None:
    """One launch over so many pieces."""
    limits = FLOATS[_NAMES[dtype]]
    triton_outputs.scan[(pieces,)](
        work,
        table,
        table.view(torch.float64),
        packed=dtype.itemsize == 2,  # noqa: PLR2004  # bytes of half a word
        is_float16=dtype is torch.float16,
        normal=limits.normal,
        kept=limits.kept,
        words=_TILE // 4,
        loads=_LOADS,
        num_warps=_WARPS,
        enable_fp_fusion=True,
    )
