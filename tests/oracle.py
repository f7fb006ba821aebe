"""An independent answer to "what are this tensor's numbers?", for tests to compare with.

It shares no code and no threshold with the package: raw bits become float64 (or Python integers) through NumPy,
what float16 does to a value is found by *casting it*, and sums are correctly rounded (``math.fsum``, integers exact).
It is slow and whole-tensor on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_doctor.tensors import TensorStats

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figures:
    """The contract's figures of one tensor; names as in the report's JSON."""

    count: int
    nan: int
    inf: int
    zeros: int
    fp16_overflow: int
    fp16_subnormal: int
    fp16_underflow: int
    absmax: float | None
    min: float | None
    max: float | None
    rms: float | None
    row_l1_max: float | None
    row_l2_max: float | None
    zero_rows: int


def _bfloat16(bits: Array) -> Array:
    """bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _float8_e5m2(bits: Array) -> Array:
    """E5M2 is the upper half of a float16, infinities and NaNs included (OCP 8-bit FP, 5.2)."""
    return (bits.astype(np.uint16) << 8).view(np.float16)


def _float8_e4m3(bits: Array) -> Array:
    """E4M3: bias 7, no infinity, S.1111.111 is NaN (OCP 8-bit FP, 5.1)."""
    table = np.empty(256)
    for code in range(256):
        sign, exponent, mantissa = -1.0 if code >> 7 else 1.0, code >> 3 & 15, code & 7
        magnitude = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
        table[code] = math.nan if code & 0x7F == 0x7F else sign * magnitude
    values: Array = table[bits]
    return values


def _float8_e8m0(bits: Array) -> Array:
    """E8M0: a power of two from 2**-127 up, 0xff is NaN (OCP Microscaling 1.0, 5.4.1)."""
    values: Array = np.array([*(2.0 ** (code - 127) for code in range(255)), math.nan])[bits]
    return values


def _fnuz(mantissa_bits: int, bias: int) -> Callable[[Array], Array]:
    """A sign, an exponent, a mantissa, all finite; the code of minus zero is NaN (arXiv:2206.02915)."""
    steps = 1 << mantissa_bits
    table = np.empty(256)
    for code in range(256):
        sign, exponent, mantissa = -1.0 if code >> 7 else 1.0, (code & 127) // steps, code % steps
        magnitude = (
            mantissa / steps * 2.0 ** (1 - bias) if exponent == 0 else (1 + mantissa / steps) * 2.0 ** (exponent - bias)
        )
        table[code] = math.nan if code == 0x80 else sign * magnitude
    return lambda bits: table[bits]


FLOATS: Mapping[str, tuple[str, Callable[[Array], Array]]] = {
    "F64": ("<u8", lambda bits: bits.view(np.float64)),
    "F32": ("<u4", lambda bits: bits.view(np.float32)),
    "F16": ("<u2", lambda bits: bits.view(np.float16)),
    "BF16": ("<u2", _bfloat16),
    "F8_E4M3": ("u1", _float8_e4m3),
    "F8_E5M2": ("u1", _float8_e5m2),
    "F8_E8M0": ("u1", _float8_e8m0),
    "F8_E4M3FNUZ": ("u1", _fnuz(3, 8)),
    "F8_E5M2FNUZ": ("u1", _fnuz(2, 16)),
}
"""Float dtype -> (its bits, how they become values)."""

INTEGERS: Mapping[str, str] = {
    **{f"{sign.upper()}{8 * size}": f"<{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8)},
    "BOOL": "?",
}
"""Integer dtype -> NumPy's name for it. The format does not say which bytes are true: every one but 0 counts as 1."""


def measure(raw: bytes | Array, dtype: str, shape: tuple[int, ...]) -> Figures:
    """The figures of a tensor.

    Args:
        raw: Its bytes as they lie in the file (little-endian, C order), or any array that holds those bytes.
        dtype: The format's name of its dtype, such as ``"BF16"``.
        shape: Its shape.

    Returns:
        Every figure; sums of floats to the last bit, integers exact.
    """
    data = raw if isinstance(raw, bytes) else np.ascontiguousarray(raw).tobytes()
    if dtype in INTEGERS:
        return _of_integers(np.frombuffer(data, INTEGERS[dtype]).reshape(shape))
    return _of_floats(decode(np.frombuffer(data, FLOATS[dtype][0]), dtype).reshape(shape))


def decode(bits: Array, dtype: str) -> Doubles:
    """The values of a float dtype's bits, shape kept."""
    with np.errstate(invalid="ignore"):  # widening a signalling NaN
        return FLOATS[dtype][1](bits).astype(np.float64)


def _of_integers(values: Array) -> Figures:
    """Integers are never cast to float16, so their ``fp16_*`` are 0 by definition."""
    flat = [int(value) for value in values.reshape(-1).tolist()]
    rows = [[int(value) for value in row] for row in _rows(values)]
    squares = [sum(value * value for value in row) for row in rows]
    return Figures(
        count=len(flat),
        nan=0,
        inf=0,
        zeros=flat.count(0),
        fp16_overflow=0,
        fp16_subnormal=0,
        fp16_underflow=0,
        absmax=max(map(abs, flat), default=None),
        min=min(flat, default=None),
        max=max(flat, default=None),
        rms=math.sqrt(Fraction(sum(value * value for value in flat), len(flat))) if flat else None,
        row_l1_max=max((float(sum(map(abs, row))) for row in rows), default=None),
        row_l2_max=max((math.sqrt(square) for square in squares), default=None),
        zero_rows=sum(not any(row) for row in rows),
    )


@np.errstate(over="ignore", under="ignore", invalid="ignore")  # invalid: any look at a signalling NaN
def _of_floats(values: Doubles) -> Figures:
    finite = values[np.isfinite(values)]
    half = values.astype(np.float16)
    squares = _sum(finite * finite)
    rows = _rows(values)
    bounded = [row[np.isfinite(row)] for row in rows]
    return Figures(
        count=values.size,
        nan=int(np.isnan(values).sum()),
        inf=int(np.isinf(values).sum()),
        zeros=int((values == 0).sum()),
        fp16_overflow=int((np.isfinite(values) & np.isinf(half)).sum()),
        fp16_subnormal=int(((half != 0) & (np.abs(half) < np.float16(2.0**-14))).sum()),
        fp16_underflow=int(((values != 0) & (half == 0)).sum()),
        absmax=float(np.abs(finite).max()) if finite.size else None,
        min=float(finite.min()) if finite.size else None,
        max=float(finite.max()) if finite.size else None,
        rms=math.sqrt(Fraction(squares) / finite.size) if finite.size and math.isfinite(squares) else None,
        row_l1_max=max((_sum(np.abs(row)) for row in bounded), default=None),
        row_l2_max=max((_norm(row) for row in bounded), default=None),
        zero_rows=sum(not row.any() for row in rows),
    )


def _rows(values: Array) -> list[Array]:
    """One flat array per output channel; none below two dimensions or where there is no element."""
    if values.ndim < 2 or not values.size:
        return []
    return list(values.reshape(values.shape[0], -1))


def _sum(values: Doubles) -> float:
    """The correctly rounded sum; inf beyond float64's range."""
    try:
        return math.fsum(values.tolist())
    except OverflowError:
        return math.inf


def _norm(row: Doubles) -> float:
    return math.sqrt(_sum(row * row))


def as_stats(figures: Figures) -> TensorStats:
    """The package's record with the oracle's figures, for tests that need a record and no kernel."""
    row_l2, rms = figures.row_l2_max, figures.rms
    squares = None if rms is None and figures.count > figures.nan + figures.inf else Fraction(rms or 0) ** 2
    return TensorStats(
        count=figures.count,
        nan=figures.nan,
        inf=figures.inf,
        zeros=figures.zeros,
        fp16_overflow=figures.fp16_overflow,
        fp16_subnormal=figures.fp16_subnormal,
        fp16_underflow=figures.fp16_underflow,
        minimum=figures.min,
        maximum=figures.max,
        squares=None if squares is None else squares * (figures.count - figures.nan - figures.inf),
        zero_rows=figures.zero_rows,
        row_l1_max=figures.row_l1_max,
        row_squares_max=None if row_l2 is None else row_l2 * row_l2,
    )
