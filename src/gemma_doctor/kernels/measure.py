"""From the bytes of a chunk to its ``TensorStats``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

import numpy as np
import numpy.typing as npt

from gemma_doctor.kernels import compiled
from gemma_doctor.kernels.formats import FLOATS, INTEGERS, TABLES, FloatFormat
from gemma_doctor.kernels.geometry import Geometry
from gemma_doctor.records import OpenRow, TensorStats

__all__ = ["measure"]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A run of whole blocks of one tensor: its geometry, its first element, how many elements."""

    geometry: Geometry
    first: int
    count: int


def measure(data: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...], first: int = 0) -> TensorStats:
    """Every statistic of a run of whole blocks of one tensor, in one pass.

    Args:
        data: The elements' bytes, little-endian, contiguous, shape (bytes,).
        dtype: The safetensors name of their dtype; one that :func:`.formats.why_unmeasured` does not refuse.
        shape: Shape of the whole tensor.
        first: Index of the first element within the tensor, at an edge of :meth:`.Geometry.edges`.

    Returns:
        The record of these elements; the merge over all chunks of a tensor is the tensor's.
    """
    if not data.size:
        return TensorStats()
    if dtype in TABLES:
        return measure(TABLES[dtype][data].view(np.uint8), "F64", shape, first)
    geometry = Geometry.of(shape)
    if dtype in FLOATS:
        words = data.view(FLOATS[dtype].word)
        return _measure_floats(words, FLOATS[dtype], _Chunk(geometry, first, words.size))
    values = (data != 0).view(np.uint8) if dtype == "BOOL" else data.view(INTEGERS[dtype])
    return _measure_integers(values, _Chunk(geometry, first, values.size))


def _measure_floats(words: npt.NDArray[np.unsignedinteger], format_: FloatFormat, chunk: _Chunk) -> TensorStats:
    geometry = chunk.geometry
    tally = compiled.Tally.empty(geometry.blocks(chunk.count))
    compiled.scan_floats(words, geometry.length, geometry.block, _form(format_), tally)
    return _stats(chunk, tally, _extremes(tally.extremes, format_), Fraction(format_.scale))


def _measure_integers(values: npt.NDArray[np.integer], chunk: _Chunk) -> TensorStats:
    geometry = chunk.geometry
    tally = compiled.Tally.empty(geometry.blocks(chunk.count))
    least, most = compiled.scan_integers(values, geometry.length, geometry.block, tally)
    return _stats(chunk, tally, (int(least), int(most)), Fraction(1))


@cache
def _form(format_: FloatFormat) -> compiled.Form:
    """The format's thresholds as the scalars that the compiled loops compare."""
    word = format_.word
    signed = np.dtype(f"i{np.dtype(word).itemsize}").type
    bfloat16 = format_.sums == "bfloat16"
    return compiled.Form(
        magnitude=word(np.iinfo(signed).max),
        infinity=word(format_.infinity),
        has_infinity=format_.has_infinity,
        overflow=word(format_.overflow),
        kept=signed(format_.kept),
        normal=signed(format_.normal),
        half=format_.sums == "half",
        widen=np.uint16(1 << format_.shift),
        # 2**-40: squares of values 2**23 times smaller still fit float32's normals. 2**60: 2**24 squares still fit.
        tame=word((127 - 40) << 7 if bfloat16 else 0),
        wild=word((127 + 60) << 7 if bfloat16 else format_.infinity),
    )


def _extremes(extremes: npt.NDArray[np.int64], format_: FloatFormat) -> tuple[float | None, float | None]:
    """Smallest and largest finite value from the magnitudes' bits."""
    max_positive, min_positive, max_negative, min_negative = (int(bits) for bits in extremes)
    if max_positive < 0 and max_negative < 0:
        return None, None
    minimum = -_decode(max_negative, format_) if max_negative >= 0 else _decode(min_positive, format_)
    maximum = _decode(max_positive, format_) if max_positive >= 0 else -_decode(min_negative, format_)
    return minimum + 0.0, maximum + 0.0  # -0.0 becomes 0.0


def _decode(bits: int, format_: FloatFormat) -> float:
    """The value that has these magnitude bits."""
    if format_.sums == "bfloat16":
        return float(np.uint32(bits << 16).view(np.float32))
    if format_.sums == "half":
        return float(np.uint16(bits << format_.shift).view(np.float16)) * format_.scale
    return float(format_.word(bits).view(format_.decoded))


def _stats(
    chunk: _Chunk, tally: compiled.Tally, extremes: tuple[float | None, float | None], scale: Fraction
) -> TensorStats:
    """The record of a tally whose sums are to be scaled (by a power of two, so exactly)."""
    counts = tally.counts.tolist()
    stats = TensorStats(
        count=chunk.count,
        nan=counts[compiled.NAN],
        inf=counts[compiled.INF],
        zeros=counts[compiled.ZEROS],
        fp16_overflow=counts[compiled.OVERFLOW],
        fp16_subnormal=counts[compiled.BELOW_NORMAL] - counts[compiled.BELOW_KEPT],
        fp16_underflow=counts[compiled.BELOW_KEPT] - counts[compiled.ZEROS],
        minimum=extremes[0],
        maximum=extremes[1],
        squares=_scaled(_exact_sum(tally.sums[:, 1]), scale**2),
    )
    geometry = chunk.geometry
    if not geometry.has_rows:
        return stats
    if geometry.long_rows:
        l1 = _scaled(_exact_sum(tally.sums[:, 0]), scale)
        row = OpenRow(chunk.first // geometry.length, geometry.length, chunk.count, stats.zeros, l1, stats.squares)
        return replace(stats, open_rows=(row,)).merge(TensorStats())  # closes the row if nothing is missing
    l1_max, squares_max = tally.tops.tolist()
    return replace(
        stats,
        zero_rows=counts[compiled.ZERO_ROWS],
        row_l1_max=l1_max * float(scale),
        row_squares_max=squares_max * float(scale) ** 2,
    )


def _scaled(value: Fraction | None, factor: Fraction) -> Fraction | None:
    return None if value is None else value * factor


def _exact_sum(values: npt.NDArray[np.float64]) -> Fraction | None:
    """The exact sum of float64 numbers; None where one is infinite.

    A float64 is an integer of 53 bits times a power of two: the integers are added at the least exponent.
    """
    if not np.isfinite(values).all():
        return None
    mantissas, exponents = np.frexp(values)
    integers = np.ldexp(mantissas, 53).astype(np.int64).tolist()
    least = int(exponents.min(initial=0))
    total = sum(m << e for m, e in zip(integers, (exponents - least).tolist(), strict=True))
    shift = least - 53
    return Fraction(total << shift) if shift >= 0 else Fraction(total, 1 << -shift)
