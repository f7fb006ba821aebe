"""How each dtype that is not quantised is laid out, and where float16's limits fall in its bits.

For an IEEE-like float the magnitude orders as the integer ``bits & ~sign``, so every question about
float16's range is an integer comparison with one threshold:

* ``overflow``: the first magnitude >= 65520, half way from 65504 to 65536; the tie goes to the even
  significand, which is inf (IEEE 754-2019, 4.3.1, roundTiesToEven).
* ``normal``: the first magnitude that rounds to a normal float16, 2**-14 - 2**-25; the tie goes to 2**-14.
* ``kept``: the first magnitude that does not round to zero, the one after 2**-25; the tie at 2**-25 goes to 0.

float8 layouts: OCP 8-bit Floating Point Specification 1.0 (E4M3 has no infinity, and NaN only at 0x7f).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from gemma_doctor.kernels.quantised import why_undecodable

__all__ = ["FLOATS", "INTEGERS", "TABLES", "UNMEASURED", "FloatFormat", "why_unmeasured"]


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A binary floating-point format with a sign bit on top, as integer thresholds on ``bits & ~sign``.

    Attributes:
        word: Unsigned integer dtype of the same width.
        decoded: Floating dtype whose values include all of the format's.
        infinity: Bits of +inf; without infinities (``finite_only``), of the first NaN.
        overflow: First magnitude that becomes inf in float16.
        normal: First magnitude that becomes a normal float16.
        kept: First magnitude that does not become zero in float16.
        sums: Which compiled loop adds its values up: pairs of bfloat16, anything that widens to float16 by a
            shift, or plain float32 / float64.
        shift: Left shift that makes a float16 of the bits (``sums="half"`` only).
        scale: The value is this power of two times that float16 (``sums="half"`` only).
        has_infinity: Whether ``infinity`` is an infinity; else it is a NaN.
    """

    word: type[np.unsignedinteger]
    decoded: type[np.floating]
    infinity: int
    overflow: int
    normal: int
    kept: int
    sums: Literal["bfloat16", "half", "plain"]
    shift: int = 0
    scale: float = 1.0
    has_infinity: bool = True


FLOATS: dict[str, FloatFormat] = {
    "BF16": FloatFormat(np.uint16, np.float32, 0x7F80, 0x4780, 0x3880, 0x3301, "bfloat16"),
    "F16": FloatFormat(np.uint16, np.float16, 0x7C00, 0x7C00, 0x0400, 0x0001, "half"),
    "F32": FloatFormat(np.uint32, np.float32, 0x7F80_0000, 0x477F_F000, 0x387F_E000, 0x3300_0001, "plain"),
    "F64": FloatFormat(
        np.uint64,
        np.float64,
        0x7FF0_0000_0000_0000,
        0x40EF_FE00_0000_0000,
        0x3F0F_FC00_0000_0000,
        0x3E60_0000_0000_0001,
        "plain",
    ),
    "F8_E5M2": FloatFormat(np.uint8, np.float16, 0x7C, 0x7C, 0x04, 0x01, "half", shift=8),
    "F8_E4M3": FloatFormat(
        np.uint8, np.float16, 0x7F, 0x7F, 0x01, 0x01, "half", shift=7, scale=256.0, has_infinity=False
    ),
}
"""The formats measured by bit comparison. Thresholds are checked against a float64 oracle in the tests."""

INTEGERS: dict[str, type[np.integer]] = {
    "I8": np.int8,
    "U8": np.uint8,
    "I16": np.int16,
    "U16": np.uint16,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
    "U64": np.uint64,
    "BOOL": np.uint8,
}
"""Integer dtypes; they are never cast to float16, so their float16 counts are 0. BOOL: any non-zero byte is 1."""


def _e8m0() -> npt.NDArray[np.float64]:
    """F8_E8M0 (OCP Microscaling 1.0): 2**(bits - 127); 0xff is NaN; no sign, no zero."""
    values = np.ldexp(1.0, np.arange(256) - 127)
    values[255] = np.nan
    return values


def _fnuz(fraction: int, bias: int) -> npt.NDArray[np.float64]:
    """float8 without infinities and without a negative zero, whose code is the only NaN (arXiv:2206.02915)."""
    codes = np.arange(128)
    exponent = codes >> fraction
    significand = (codes & ((1 << fraction) - 1)) + ((exponent > 0) << fraction)
    positive = np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - bias - fraction)
    return np.concatenate((positive, [np.nan], -positive[1:]))


TABLES: dict[str, npt.NDArray[np.float64]] = {
    "F8_E8M0": _e8m0(),
    "F8_E4M3FNUZ": _fnuz(3, 8),
    "F8_E5M2FNUZ": _fnuz(2, 16),
}
"""Formats measured through a table of all values by code."""

UNMEASURED: dict[str, str] = {
    "F4": "packed 4-bit floats mean nothing without their block scales",
    "F6_E2M3": "packed 6-bit floats mean nothing without their block scales",
    "F6_E3M2": "packed 6-bit floats mean nothing without their block scales",
    "C64": "complex numbers have no order and no float16 form",
}
"""Dtypes that are not measured, and why."""


def why_unmeasured(dtype: str) -> str | None:
    """Why tensors of this dtype are skipped; None where they are measured."""
    if dtype in FLOATS or dtype in INTEGERS or dtype in TABLES:
        return None
    return UNMEASURED.get(dtype) or why_undecodable(dtype)
