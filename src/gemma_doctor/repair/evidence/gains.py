"""What storing a scaled gain would lose, counted from its bytes before anything is written.

A gain that is stored as what is added to one, w, becomes s (1 + w) - 1. For a small s that lies near -1, where dtypes
are coarser than near the gain itself, so that a dtype of few bits changes the gain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gemma_doctor.checkpoint import FileBytes
from gemma_doctor.repair.elements.edits import scaled_gain
from gemma_doctor.repair.elements.floats import FORMS, Doubles, narrow, widen
from gemma_doctor.tensors import TensorInfo

__all__ = ["GainLosses", "gain_losses"]


@dataclass(frozen=True, slots=True)
class GainLosses:
    """What the scaled gains lose.

    Attributes:
        inexact: Elements that float32 does not hold exactly.
        in_float32: Largest error of a gain that is stored as float32, relative to the gains' root mean square.
        in_float16: The same once a loader has cast it to float16.
        in_bfloat16: The same for bfloat16.
    """

    inexact: int
    in_float32: float
    in_float16: float
    in_bfloat16: float


def gain_losses(files: FileBytes, tensor: TensorInfo, exponent: int) -> GainLosses:
    """What storing 2**exponent * (1 + w) - 1 would lose.

    Args:
        files: The open bytes of its checkpoint.
        tensor: w, finite, in F64, F32, F16 or BF16; a vector, read whole.
        exponent: The power.
    """
    raw = files.read(tensor.file, tensor.start, tensor.stop)
    values = widen(np.frombuffer(raw.tobytes(), FORMS[tensor.dtype].word), tensor.dtype)
    wanted = scaled_gain(values, exponent)
    stored = widen(narrow(wanted, "F32"), "F32")
    rms = float(np.sqrt(np.mean((1 + wanted) ** 2))) if wanted.size else 0.0
    return GainLosses(
        inexact=int(np.count_nonzero(scaled_gain(stored, -exponent) != values)),
        in_float32=_error(stored, wanted, rms),
        in_float16=_error(widen(narrow(stored, "F16"), "F16"), wanted, rms),
        in_bfloat16=_error(widen(narrow(stored, "BF16"), "BF16"), wanted, rms),
    )


def _error(stored: Doubles, wanted: Doubles, rms: float) -> float:
    return float(np.abs(stored - wanted).max() / rms) if rms else 0.0
