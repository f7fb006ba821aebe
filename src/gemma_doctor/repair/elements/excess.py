"""What an edit loses beyond what its exactness allows.

=============  ====================================================================================================
exact, eps     Every element must be exactly what the edit asks for: its value times a power of two, or its value.
rounded        An element may be rounded, but not become inf or NaN from finite, or zero from another number. What
               a clamp or a zeroing replaces is never a rounding.
lossy          Anything goes.
=============  ====================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from gemma_doctor.plans import Cast, Scale, ScaleGain
from gemma_doctor.repair.elements.edits import Change, blocks, dtype_after, scale_bits, scaled_gain
from gemma_doctor.repair.elements.floats import FORMS, Bits, Doubles, cast_bits, widen

__all__ = ["Excess", "Worst", "excess"]

_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Worst:
    """The element that an edit hurts most.

    Attributes:
        index: Its index in the flattened tensor.
        before: Its value before the edit.
        after: Its value after.
    """

    index: int
    before: float
    after: float

    @property
    def badness(self) -> tuple[float, int]:
        """What orders them: the larger value is the worse to hurt, then the first."""
        return (np.inf if np.isnan(self.before) else abs(self.before), -self.index)


@dataclass(frozen=True, slots=True)
class Excess:
    """The elements of a chunk that lose more than they may; chunks merge in any order.

    Attributes:
        count: How many.
        worst: The largest of them; None where there are none.
    """

    count: int = 0
    worst: Worst | None = None

    def merge(self, other: Excess) -> Excess:
        """Those of both chunks."""
        worst = max((w for w in (self.worst, other.worst) if w), key=attrgetter("badness"), default=None)
        return Excess(self.count + other.count, worst)


def excess(edit: Change, before: Bits, after: Bits, dtype: str, first: int) -> Excess:
    """What an edit has lost in a chunk beyond what its exactness allows.

    Args:
        edit: The edit.
        before: The elements' bits before, shape (n,).
        after: Their bits after, shape (n,), in the dtype that the edit leaves.
        dtype: The dtype before.
        first: Index of the chunk's first element in the flattened tensor.
    """
    total = Excess()
    if edit.exactness == "lossy":
        return total
    for block in blocks(before.size):
        lost = _lost(edit, before[block], after[block], dtype)
        if lost.any():
            at = np.flatnonzero(lost) + block.start
            old, new = widen(before[at], dtype), widen(after[at], dtype_after(edit, dtype))
            total = total.merge(_account(old, new, at + first))
    return total


def _lost(edit: Change, before: Bits, after: Bits, dtype: str) -> _Mask:
    """Undoing the edit tells: what was exact comes back (a power of two or a wider dtype loses nothing)."""
    match edit:
        case ScaleGain():
            return _lost_gain(edit, before, after, dtype)
        case Scale() | Cast() if edit.exactness == "rounded":
            return _ruined(before, after, dtype, dtype_after(edit, dtype))
        case Scale():
            back = scale_bits(after, dtype, -edit.exponent)
        case Cast():
            back = cast_bits(after, edit.dtype, dtype)
        case _:
            replaced: _Mask = before != after
            return replaced
    lost: _Mask = before != back
    if lost.any():
        lost &= FORMS[dtype].magnitudes(before) < FORMS[dtype].first_nan
    return lost


def _lost_gain(edit: ScaleGain, before: Bits, after: Bits, dtype: str) -> _Mask:
    """A gain may become 1, which is stored as zero; it may not become inf, nor, where it is exact, another one."""
    overflown: _Mask = (FORMS["F32"].magnitudes(after) >= FORMS["F32"].special) & (
        FORMS[dtype].magnitudes(before) < FORMS[dtype].special
    )
    if edit.exactness == "rounded":
        return overflown
    old = widen(before, dtype)
    changed: _Mask = (scaled_gain(widen(after, "F32"), -edit.exponent) != old) & np.isfinite(old)
    return overflown | changed


def _ruined(before: Bits, after: Bits, dtype: str, dtype_now: str) -> _Mask:
    old, new = FORMS[dtype].magnitudes(before), FORMS[dtype_now].magnitudes(after)
    overflown = (new >= FORMS[dtype_now].special) & (old < FORMS[dtype].special)
    ruined: _Mask = overflown | ((new == 0) & (old != 0))
    return ruined


def _account(before: Doubles, after: Doubles, at: npt.NDArray[np.intp]) -> Excess:
    i = int(np.argmax(np.where(np.isnan(before), np.inf, np.abs(before))))
    return Excess(at.size, Worst(int(at[i]), float(before[i]), float(after[i])))
