"""The window of a norm that squares in float16: outputs must land below its upper end and above its lower one.

Above, the square overflows (256). Below, the backward pass does: the derivative of 1 / sqrt(v) is -v^(-3/2) / 2, and
torch computes the power in the dtype of v (derivatives.yaml, rsqrt: ``-0.5 * grad * result.pow(3)``), so that it is inf
in float16 wherever v = m + eps lies below 65504^(-2/3) = 6.2e-4, whatever the loss scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gemma_doctor.tensors import FP16_MAX

__all__ = ["FLOOR", "HEADROOM", "LIFT", "LOWER_ROOM", "Window", "least_exponent"]

HEADROOM = 2.0
"""Outputs stay within their limit divided by this: one bit."""

FLOOR = FP16_MAX ** (-2 / 3)
"""Mean squares below this, 6.2e-4, make the norm's gradient infinite in float16."""

LOWER_ROOM = 4.0
"""Root mean squares stay above the floor's by this factor, two bits: other inputs reach lower."""

LIFT = 2.0**-4
"""Largest relative change for the sake of the backward pass; a lifted position follows its norm more closely."""


@dataclass(frozen=True, slots=True)
class Window:
    """The powers of two by which measured outputs may be divided.

    Attributes:
        least: The least k for which the peak times 2^-k stays within the upper end, one bit inside; may be negative.
        most: The largest k for which the least mean square times 4^-k stays above the floor, two bits inside.
        sunk: Whether that mean square lies below the floor as it is.
    """

    least: int
    most: int
    sunk: bool

    @classmethod
    def of(cls, peak: float, mean_square: float, limit: float) -> Window:
        """The window of outputs.

        Args:
            peak: Their largest magnitude, above 0.
            mean_square: Their least mean square over the channels at a position, above 0.
            limit: Largest magnitude that they may have.
        """
        room = math.log2(mean_square / FLOOR) / 2 - math.log2(LOWER_ROOM)
        return cls(least_exponent(peak, limit / HEADROOM), math.floor(room), mean_square < FLOOR)

    @property
    def wide(self) -> bool:
        """Whether some power of two serves both ends."""
        return self.least <= self.most

    @property
    def middle(self) -> int:
        """The k that leaves as much room above as below; the least one where both ends cannot be met."""
        return (self.least + self.most) // 2 if self.wide else self.least


def least_exponent(largest: float, room: float) -> int:
    """The least k, perhaps negative, for which largest * 2**-k is within the room.

    Args:
        largest: The magnitude, above 0.
        room: What it may be.
    """
    k = math.ceil(math.log2(largest / room))
    while math.ldexp(largest, -k) > room:  # the logarithm is rounded
        k += 1
    return k
