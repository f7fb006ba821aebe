"""What each program of a launch over many tensors scans: a compiled loop, for NumPy takes longer than the launch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gemma_doctor.kernels.jit import jit

__all__ = ["Grain", "cut"]

_Integers = npt.NDArray[np.int64]


class Grain(NamedTuple):
    """How tensors are cut.

    Attributes:
        vector: Bytes of the widest load of one thread, which must begin at a multiple of them.
        programs: Pieces to be made of all tensors together, where that leaves them moderate.
        step: Bytes of which a piece has a multiple, but where a tensor ends.
        most: Most bytes of a piece; a multiple of ``step``.
    """

    vector: int
    programs: int
    step: int
    most: int


@jit
def cut(
    addresses: _Integers, sizes: _Integers, kinds: _Integers, itemsizes: _Integers, grain: Grain
) -> tuple[_Integers, _Integers]:
    """Cuts tensors into pieces of about the same size.

    Elements before the first address that a wide load may have are a piece of their own.

    Args:
        addresses: Where each tensor begins; shape (tensors,), as are the next two.
        sizes: Its elements.
        kinds: Its dtype, a place in ``itemsizes``.
        itemsizes: Bytes of an element of each dtype; shape (dtypes,).
        grain: How they are cut.

    Returns:
        Address, elements, tensor of each piece, by dtype; shape (pieces, 3). And where the pieces of each dtype begin,
        and the last ones end; shape (dtypes + 1,).
    """
    vector, programs, step, most = grain
    total = 0
    for tensor in range(len(sizes)):
        total += sizes[tensor] * itemsizes[kinds[tensor]]
    size = min(max(step, -(-total // (programs * step)) * step), most)
    starts = np.zeros(len(itemsizes) + 1, np.int64)
    for tensor in range(len(sizes)):
        itemsize = itemsizes[kinds[tensor]]
        head = min(-addresses[tensor] % vector // itemsize, sizes[tensor])
        starts[kinds[tensor] + 1] += (head > 0) - (-(sizes[tensor] - head) // (size // itemsize))
    starts = np.cumsum(starts)
    pieces, ends = np.empty((starts[-1], 3), np.int64), starts.copy()
    for tensor in range(len(sizes)):
        kind = kinds[tensor]
        itemsize, address, left = itemsizes[kind], addresses[tensor], sizes[tensor]
        length = min(-address % vector // itemsize, left)
        if length == 0:
            length = min(size // itemsize, left)
        while left > 0:
            pieces[ends[kind]] = address, length, tensor
            ends[kind] += 1
            address, left = address + length * itemsize, left - length
            length = min(size // itemsize, left)
    return pieces, starts
