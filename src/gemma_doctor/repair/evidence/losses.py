"""What storing a tensor with another dtype or scale would lose, counted from its bytes before anything is written.

A scan's figures do not hold a tensor's smallest magnitude, so whether a scaling is exact, and what a cast would flush
to zero, can only be known by looking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gemma_doctor.checkpoint import FileBytes
from gemma_doctor.repair.elements.floats import FORMS, Doubles, Form, widen
from gemma_doctor.tensors import TensorInfo

__all__ = ["Losses", "losses"]

_CHUNK = 1 << 18  # elements that are looked at together: 2 MiB of float64


@dataclass(frozen=True, slots=True)
class Losses:
    """How many finite, non-zero elements would not survive.

    Attributes:
        infinite: Those that become inf.
        flushed: Those that become zero.
        subnormal: Those that become subnormal numbers.
        lost: Those that lose bits because they fall below the normal numbers; what is flushed is among them. A
            rounding to fewer bits above that is not.
    """

    infinite: int = 0
    flushed: int = 0
    subnormal: int = 0
    lost: int = 0

    def __add__(self, other: Losses) -> Losses:
        return Losses(
            self.infinite + other.infinite,
            self.flushed + other.flushed,
            self.subnormal + other.subnormal,
            self.lost + other.lost,
        )


def losses(files: FileBytes, tensor: TensorInfo, exponent: int, dtype: str) -> Losses:
    """What storing a tensor times 2**exponent would lose.

    Args:
        files: The open bytes of its checkpoint.
        tensor: The tensor, in F64, F32, F16 or BF16.
        exponent: Power of two that it is multiplied by.
        dtype: Safetensors dtype that the products are stored in, one of the same four.

    Returns:
        The counts, exact.
    """
    word, form = FORMS[tensor.dtype].word, FORMS[dtype]
    step = _CHUNK * np.dtype(word).itemsize
    total = Losses()
    for start in range(tensor.start, tensor.stop, step):
        raw = files.read(tensor.file, start, min(start + step, tensor.stop))
        values = np.abs(widen(np.frombuffer(raw.tobytes(), word), tensor.dtype))
        total += _count(values[np.isfinite(values) & (values > 0)], exponent, form)
    return total


def _count(magnitudes: Doubles, exponent: int, form: Form) -> Losses:
    """The counts for positive numbers; rounding is to nearest, ties to even (IEEE 754-2019, 4.3.1)."""
    normal = 2.0 ** (1 - form.bias)
    tiny = np.ldexp(normal, -form.fraction)
    with np.errstate(over="ignore", under="ignore"):
        products = np.ldexp(magnitudes, exponent)
        small = products < normal
        below = products[small]
        # float64 itself loses bits below 2**-1022, where the multiples of tiny come too late
        in_float64 = np.ldexp(below, -exponent) != magnitudes[small]
        lost = np.count_nonzero(in_float64 | (np.mod(below / tiny, 1) != 0))
    flushed = np.count_nonzero(below <= tiny / 2)
    return Losses(
        infinite=int(np.count_nonzero(products / 2.0**form.bias >= 2 - 2.0 ** -(form.fraction + 1))),
        flushed=int(flushed),
        subnormal=int(np.count_nonzero(below < normal - tiny / 2) - flushed),
        lost=int(lost),
    )
