"""The floating-point formats as bits: widening that is exact, narrowing that is correctly rounded.

Arrays of bits are unsigned integers of the format's width. Rounding is to nearest, ties to even (IEEE 754-2019,
4.3.1). float8: OCP 8-bit Floating Point Specification 1.0; E4M3 has no infinity, and what is too large becomes NaN
there, as its non-saturating conversion has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gemma_doctor.kernels.formats import FLOATS

__all__ = ["CASTS", "FORMS", "Bits", "Doubles", "Form", "cast_bits", "narrow", "widen"]

Bits: TypeAlias = npt.NDArray[Any]
"""Unsigned integers of a format's width."""

Doubles: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Form:
    """A binary format: sign on top, exponent, fraction.

    Attributes:
        word: Unsigned integer of its width.
        fraction: Bits of the fraction.
        bias: Bias of the exponent.
        special: First magnitude (bits without the sign) that is no finite number.
        has_infinity: Whether ``special`` is an infinity; else it is the only NaN.
    """

    word: type[np.unsignedinteger[Any]]
    fraction: int
    bias: int
    special: int
    has_infinity: bool

    @property
    def sign(self) -> int:
        """The sign's bit."""
        return 1 << (8 * np.dtype(self.word).itemsize - 1)

    @property
    def first_nan(self) -> int:
        """First magnitude that is a NaN."""
        return self.special + 1 if self.has_infinity else self.special

    @property
    def quiet_nan(self) -> int:
        """The magnitude of a NaN that a conversion makes."""
        return self.special | 1 << (self.fraction - 1)

    def magnitudes(self, bits: Bits) -> Bits:
        """Bits without the sign: they order as the magnitudes do."""
        magnitudes: Bits = bits & self.word(self.sign - 1)
        return magnitudes


def _form(dtype: str, fraction: int, bias: int) -> Form:
    known = FLOATS[dtype]
    return Form(known.word, fraction, bias, known.infinity, known.has_infinity)


FORMS: dict[str, Form] = {
    "F64": _form("F64", 52, 1023),
    "F32": _form("F32", 23, 127),
    "F16": _form("F16", 10, 15),
    "BF16": _form("BF16", 7, 127),
    "F8_E5M2": _form("F8_E5M2", 2, 15),
    "F8_E4M3": _form("F8_E4M3", 3, 7),
}
"""The formats whose values can be edited."""

CASTS = ("F64", "F32", "F16", "BF16")
"""The formats that tensors are cast between."""


def widen(bits: Bits, dtype: str) -> Doubles:
    """The values as float64, all of them exact.

    Args:
        bits: Any shape.
        dtype: One of :data:`FORMS`.
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        if dtype in ("F64", "F32", "F16", "BF16"):
            return _decoded(bits, dtype).astype(np.float64)
        values: Doubles = _table(dtype)[bits]
        return values


def narrow(values: Doubles, dtype: str) -> Bits:
    """Float64 values as bits of a format, rounded once.

    Args:
        values: Any shape.
        dtype: One of :data:`FORMS`.
    """
    form = FORMS[dtype]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype in ("F64", "F32", "F16"):
            return values.astype(FLOATS[dtype].decoded).view(form.word)
        return _rounded(values, form)


def cast_bits(bits: Bits, source: str, target: str) -> Bits:
    """Bits of one format as bits of another, rounded once.

    Args:
        bits: Any shape.
        source: One of :data:`CASTS`.
        target: One of :data:`CASTS`.
    """
    if source == target:
        return bits
    if "F64" in (source, target):
        return narrow(widen(bits, source), target)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        singles = _decoded(bits, source).astype(np.float32, copy=False)
        if target == "BF16":
            return _upper_half(singles.view(np.uint32))
        return singles.astype(FLOATS[target].decoded, copy=False).view(FORMS[target].word)


def _decoded(bits: Bits, dtype: str) -> npt.NDArray[np.floating[Any]]:
    if dtype == "BF16":
        singles: npt.NDArray[np.float32] = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return singles
    return bits.view(FLOATS[dtype].decoded)


def _upper_half(bits: npt.NDArray[np.uint32]) -> Bits:
    """float32 to bfloat16: half of the lower half's range carries, a tie only into an odd upper half."""
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded: Bits = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    nan = (bits & np.uint32(0x7FFF_FFFF)) > np.uint32(0x7F80_0000)
    if nan.any():  # a NaN's lower half must not carry into the sign
        rounded[nan] = (bits[nan] >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40)
    return rounded


def _rounded(values: Doubles, form: Form) -> Bits:
    """Rounds to multiples of the last place; a carry moves on into the exponent by itself."""
    least = 1 - form.bias
    finite = np.where(np.isfinite(values), np.abs(values), 0.0)
    exponent = np.where(finite == 0, least, np.maximum(np.frexp(finite)[1] - 1, least))
    places = np.rint(np.ldexp(finite, form.fraction - exponent)).astype(np.int64)
    codes: Bits = np.minimum(places + ((exponent.astype(np.int64) - least) << form.fraction), form.special)
    codes[np.isinf(values)] = form.special
    codes[np.isnan(values)] = form.quiet_nan
    codes |= np.where(np.signbit(values), form.sign, 0)
    return codes.astype(form.word)


def _table(dtype: str) -> Doubles:
    """Every value of an 8-bit format by its code."""
    form = FORMS[dtype]
    codes = np.arange(256)
    magnitudes = codes & (form.sign - 1)
    exponent = magnitudes >> form.fraction
    fraction = (magnitudes & ((1 << form.fraction) - 1)) + ((exponent > 0) << form.fraction)
    values = np.ldexp(fraction.astype(np.float64), np.maximum(exponent, 1) - form.bias - form.fraction)
    values[magnitudes >= form.special] = np.inf
    values[magnitudes >= form.first_nan] = np.nan
    signed: Doubles = np.where(codes & form.sign, -values, values)
    return signed
