"""What an edit does to the elements of a tensor: pure functions on a chunk's bits.

Edits to one tensor compose in their order, and each works on the tensor *as stored by the one before*: its dtype's
bits go in, the new dtype's bits come out, rounded at every step. A scaling by 2**-20 and then by 2**20 in float16
is therefore not the identity where the first has lost bits, and it is the first that is held to account for them
(see :mod:`gemma_doctor.repair.elements.excess`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from gemma_doctor.plans import Cast, Clamp, Scale, ScaleGain, ZeroNonfinite
from gemma_doctor.repair.elements.floats import CASTS, FORMS, Bits, Doubles, Form, cast_bits, narrow, widen

__all__ = ["Change", "blocks", "carry_out", "dtype_after", "scale_bits", "scaled_gain", "why_impossible"]

Change: TypeAlias = Scale | ScaleGain | Cast | Clamp | ZeroNonfinite
"""The edits that change elements."""

_BLOCK = 1 << 15
"""Elements edited at a time: all temporary arrays stay in the processor's second-level cache."""

_WIDEST_SHIFT = 2_200
"""Beyond this power of two every finite value of every format has long become zero or too large."""


def why_impossible(edit: Change, dtype: str) -> str | None:
    """Why an edit cannot be carried out on tensors of that dtype; None where it can."""
    match edit:
        case Cast():
            if dtype in CASTS and edit.dtype in CASTS:
                return None
            return f"casts are made between {', '.join(CASTS)}, not from {dtype} to {edit.dtype}"
        case ScaleGain():
            return None if dtype in CASTS else f"gains are scaled in {', '.join(CASTS)}, not in {dtype}"
        case Clamp() if not (math.isfinite(edit.limit) and edit.limit >= 0):
            return f"the limit must be a finite number that is not negative, not {edit.limit}"
        case _:
            return None if dtype in FORMS else f"{dtype} elements cannot be changed; {', '.join(FORMS)} can"


def dtype_after(edit: Change, dtype: str) -> str:
    """The dtype of a tensor once the edit has been carried out."""
    match edit:
        case Cast():
            return edit.dtype
        case ScaleGain():
            return "F32"
        case _:
            return dtype


def carry_out(edit: Change, bits: Bits, dtype: str) -> Bits:
    """Carry out one edit on a chunk.

    Args:
        edit: The edit, possible for the dtype (see :func:`why_impossible`).
        bits: The elements' bits, shape (n,), unsigned integers of the dtype's width; not written to.
        dtype: The safetensors dtype.

    Returns:
        The new elements' bits, shape (n,).
    """
    edited = np.empty(bits.shape, FORMS[dtype_after(edit, dtype)].word)
    for block in blocks(bits.size):
        edited[block] = _edited(edit, bits[block], dtype)
    return edited


def blocks(count: int) -> Iterator[slice]:
    """A chunk of so many elements, cut into what the processor's cache holds."""
    return (slice(start, start + _BLOCK) for start in range(0, count, _BLOCK))


def scale_bits(bits: Bits, dtype: str, exponent: int) -> Bits:
    """Multiply by a power of two, rounded once where that is not exact; inf and NaN stay.

    Adds to the exponents of normal numbers that stay normal. Subnormals and the edges go the long way.

    Args:
        bits: Shape (n,).
        dtype: One of :data:`FORMS`.
        exponent: The power.
    """
    form = FORMS[dtype]
    low, high = _shiftable(form, exponent)
    if low > high:
        return _scale_any(bits, dtype, exponent)
    above_low = form.magnitudes(bits)
    above_low -= form.word(low)  # wraps around for what is below
    hard = above_low > form.word(high - low)
    scaled: Bits = bits + form.word((exponent << form.fraction) % (2 * form.sign))
    if hard.any():
        at = np.flatnonzero(hard)
        scaled[at] = _scale_any(bits[at], dtype, exponent)
    return scaled


def scaled_gain(values: Doubles, exponent: int) -> Doubles:
    """What is stored of a gain 1 + w that is multiplied by a power of two: 2**exponent * (1 + w) - 1, in float64.

    Args:
        values: w, shape (n,).
        exponent: The power.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scaled: Doubles = np.ldexp(1 + values, max(-_WIDEST_SHIFT, min(exponent, _WIDEST_SHIFT))) - 1.0
    return scaled


def _edited(edit: Change, bits: Bits, dtype: str) -> Bits:
    match edit:
        case Scale():
            return scale_bits(bits, dtype, edit.exponent)
        case ScaleGain():
            return narrow(scaled_gain(widen(bits, dtype), edit.exponent), "F32")
        case Cast():
            return cast_bits(bits, dtype, edit.dtype)
        case Clamp():
            return _clamp(bits, dtype, edit.limit)
        case ZeroNonfinite():
            finite = FORMS[dtype].magnitudes(bits) < FORMS[dtype].special
            return np.where(finite, bits, np.zeros_like(bits))


def _shiftable(form: Form, exponent: int) -> tuple[int, int]:
    """The magnitudes that are normal before and after; empty (low > high) where there are none."""
    least, greatest, shift = 1 << form.fraction, form.special - 1, abs(exponent) << form.fraction
    return (least, greatest - shift) if exponent >= 0 else (least + shift, greatest)


def _scale_any(bits: Bits, dtype: str, exponent: int) -> Bits:
    """Scales what may be anything: zeros, inf and NaN stay."""
    form = FORMS[dtype]
    scaled: Bits = bits.copy()
    magnitudes = form.magnitudes(bits)
    finite = np.flatnonzero((magnitudes != 0) & (magnitudes < form.special))
    if finite.size:
        scaled[finite] = _scale_values(bits[finite], dtype, exponent)
    return scaled


def _scale_values(bits: Bits, dtype: str, exponent: int) -> Bits:
    """Scales finite numbers as values: exactly in float64, then rounded once (float64 itself rounds in ldexp)."""
    shift = max(-_WIDEST_SHIFT, min(exponent, _WIDEST_SHIFT))
    with np.errstate(over="ignore", under="ignore"):
        return narrow(np.ldexp(widen(bits, dtype), shift), dtype)


def _clamp(bits: Bits, dtype: str, limit: float) -> Bits:
    form = FORMS[dtype]
    magnitudes, most = form.magnitudes(bits), form.word(_not_above(limit, dtype))
    beyond = (magnitudes > most) & (magnitudes < form.first_nan)
    return np.where(beyond, (bits & form.word(form.sign)) | most, bits)


def _not_above(limit: float, dtype: str) -> int:
    """Bits of the format's largest finite number that is not above the limit."""
    form = FORMS[dtype]
    code = min(int(narrow(np.array([limit]), dtype)[0]), form.special - 1)
    return code - 1 if widen(np.array([code], form.word), dtype)[0] > limit else code
