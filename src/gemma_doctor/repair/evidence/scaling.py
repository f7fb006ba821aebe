"""What every pass that multiplies by powers of two holds itself to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gemma_doctor.architectures.dtypes import FULL_FLOATS
from gemma_doctor.examination import Examination
from gemma_doctor.records import Scalar
from gemma_doctor.tensors import MeasuredTensor

__all__ = ["SMALL", "Note", "RefusedError", "refuse_coarse", "scalable"]

SMALL = 2.0**-9
"""Largest relative change that counts as small: half of bfloat16's unit roundoff, 2**-8."""

_HALF_TINY = 2.0**-25  # the most that rounding to a subnormal float16 costs: half of the smallest one


class RefusedError(Exception):
    """Why something cannot be scaled; caught where the answer is given."""


@dataclass(frozen=True, slots=True)
class Note:
    """What a reason says so far.

    Attributes:
        text: Its sentences.
        evidence: Its numbers.
    """

    text: str
    evidence: Mapping[str, Scalar]

    def plus(self, text: str, evidence: Mapping[str, Scalar]) -> Note:
        """The note with another sentence and its numbers."""
        return Note(f"{self.text} {text}".rstrip(), {**self.evidence, **evidence})


def scalable(exam: Examination, name: str) -> MeasuredTensor:
    """A tensor that can be scaled.

    Args:
        exam: The examined checkpoint.
        name: Its canonical name.

    Raises:
        RefusedError: If it is absent, of a dtype with scales of its own, or not finite.
    """
    tensor, on_disk = exam.measured(name), exam.disk_name(name)
    if tensor is None:
        raise RefusedError(f"{on_disk} is not in the checkpoint, or was not measured")
    if tensor.info.dtype not in FULL_FLOATS:
        raise RefusedError(f"{on_disk} is stored as {tensor.info.dtype}, which comes with scales of its own")
    if tensor.stats.nan or tensor.stats.inf:
        raise RefusedError(f"{on_disk} holds NaN or infinities, which come first (GD101)")
    return tensor


def refuse_coarse(tensor: MeasuredTensor, exponent: int) -> None:
    """Refuse to make weights so small that float16 would round them by more than :data:`SMALL` of their rms.

    Args:
        tensor: The tensor.
        exponent: Power of two that it is multiplied by.

    Raises:
        RefusedError: If it would.
    """
    rms = math.ldexp(tensor.stats.rms or 0.0, exponent)
    if rms and exponent < 0 and rms * SMALL < _HALF_TINY:
        raise RefusedError(
            f"Times 2^{exponent} the weights of {tensor.info.name} have an rms of {rms:.2g}, and float16 would round "
            f"them by more than {SMALL:.2g} of that"
        )
