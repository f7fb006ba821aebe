"""Statistics of many tensors on a GPU: one launch per dtype, however many tensors there are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

from gemma_doctor.kernels import triton_outputs
from gemma_doctor.tensors import TensorStats

__all__ = ["DTYPES", "enqueue", "nonfinite", "read"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What the kernel measures."""

_KINDS = {dtype: kind for kind, dtype in enumerate(DTYPES)}
_ITEMSIZES = np.array([dtype.itemsize for dtype in DTYPES])

_VECTOR = 16
"""Bytes of the widest load of one thread; the kernel's whole tiles begin at multiples of it."""

_ROWS = 512
"""Loads in a tile: two for each of 256 threads."""

_REGISTERS = 64
"""Of each thread. Four programs then share a multiprocessor of 65,536, and enough loads are in flight."""

_PROGRAMS = 528
"""Pieces that a launch is cut into where that leaves them moderate: four for each of an H100's multiprocessors."""

_PIECE = 64 * _ROWS * _VECTOR
"""Most bytes of a piece."""


def enqueue(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Enqueues the measurement of tensors on the device's current stream; waits for nothing.

    Args:
        tensors: Dense, of one device, of :data:`DTYPES`.

    Returns:
        The table, shape (tensors, 9), int64, for :func:`read`.
    """
    number = len(tensors)
    table = torch.zeros((number, triton_outputs.COLUMNS.value), dtype=torch.int64, device=tensors[0].device)
    addresses = np.fromiter((tensor.data_ptr() for tensor in tensors), np.int64, number)
    sizes = np.fromiter((tensor.numel() for tensor in tensors), np.int64, number)
    kinds = np.fromiter((_KINDS[tensor.dtype] for tensor in tensors), np.int64, number)
    size = _piece_bytes(int((sizes * _ITEMSIZES[kinds]).sum()))
    for kind, dtype in enumerate(DTYPES):
        lines = np.flatnonzero((kinds == kind) & (sizes > 0))
        if lines.size:
            places = np.stack([addresses[lines], sizes[lines], lines], axis=1)
            _launch(torch.from_numpy(_pieces(places, dtype.itemsize, size)), table, dtype)
    return table


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


def _launch(work: torch.Tensor, table: torch.Tensor, dtype: torch.dtype) -> None:
    """One launch over all pieces. Torch keeps the pinned copy until the device has read it."""
    on_device = (work.pin_memory() if table.is_cuda else work).to(table.device, non_blocking=True)
    with torch.cuda.device_of(table):  # Triton launches on the current device
        triton_outputs.scan[(len(work),)](
            on_device,
            table,
            table.view(torch.float64),
            dtype is torch.float16,
            _ROWS,
            _VECTOR // dtype.itemsize,
            num_warps=8,
            maxnreg=_REGISTERS,
            enable_fp_fusion=True,
        )


def _pieces(places: npt.NDArray[np.int64], itemsize: int, size: int) -> npt.NDArray[np.int64]:
    """What each program scans.

    Elements before the first multiple of 16 bytes are a piece of their own: wide loads must not begin there.

    Args:
        places: Address, elements, line of the table for each tensor; shape (tensors, 3).
        itemsize: Bytes of an element.
        size: Most bytes of a piece.

    Returns:
        The same for each piece; shape (pieces, 3).
    """
    addresses, sizes, lines = places.T
    heads = np.minimum(-addresses % _VECTOR // itemsize, sizes)
    bodies = sizes - heads
    elements = size // itemsize
    number = -(-bodies // elements)
    which = np.repeat(np.arange(len(places)), number)
    first = (np.arange(len(which)) - np.repeat(np.cumsum(number) - number, number)) * elements
    starts = (addresses + heads * itemsize)[which] + first * itemsize
    body = np.stack([starts, np.minimum(bodies[which] - first, elements), lines[which]], axis=1)
    return np.concatenate([body, np.stack([addresses, heads, lines], axis=1)[heads > 0]])


def _piece_bytes(total: int) -> int:
    """Bytes of a piece, whole tiles, for launches of that many bytes."""
    tile = _ROWS * _VECTOR
    return min(max(tile, -(-total // (_PROGRAMS * tile)) * tile), _PIECE)
