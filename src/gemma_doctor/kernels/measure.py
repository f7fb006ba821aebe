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
from gemma_doctor.kernels.quantised import decode, packed_bytes
from gemma_doctor.kernels.units import nbytes
from gemma_doctor.tensors import OpenRow, TensorStats

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
        dtype: The format's own name of their dtype; one that :func:`.formats.why_unmeasured` does not refuse.
        shape: Shape of the whole tensor.
        first: Index of the first element within the tensor, at an edge of :meth:`.Geometry.edges`.

    Returns:
        The record of these elements; the merge over all chunks of a tensor is the tensor's.
    """
    if not data.size:
        return TensorStats()
    geometry = Geometry.of(shape)
    if dtype in TABLES:
        return _measure_table(data, TABLES[dtype], geometry, first)
    if dtype in FLOATS:
        return _measure_floats(data, FLOATS[dtype], geometry, first)
    if dtype in INTEGERS:
        return _measure_integers(data, dtype, geometry, first)
    return _measure_quantised(data, dtype, geometry, first)


def _measure_quantised(data: npt.NDArray[np.uint8], dtype: str, geometry: Geometry, first: int) -> TensorStats:
    """Block by block, as in :func:`_measure_table`."""
    stats = TensorStats()
    step = packed_bytes(geometry.block, dtype)
    room = np.empty(min(geometry.block, geometry.numel), np.float32)
    for number, start in enumerate(range(0, data.size, step)):
        values = decode(data[start : start + step], dtype, room)
        at = first + number * geometry.block
        stats = stats.merge(_measure_floats(values.view(np.uint8), FLOATS["F32"], geometry, at))
    return stats


def _measure_table(
    codes: npt.NDArray[np.uint8], table: npt.NDArray[np.float64], geometry: Geometry, first: int
) -> TensorStats:
    """Block by block, since the decoded values take eight times the room."""
    stats = TensorStats()
    for start in range(0, codes.size, geometry.block):
        values = table[codes[start : start + geometry.block]]
        stats = stats.merge(_measure_floats(values.view(np.uint8), FLOATS["F64"], geometry, first + start))
    return stats


def _measure_floats(data: npt.NDArray[np.uint8], format_: FloatFormat, geometry: Geometry, first: int) -> TensorStats:
    form = _float_form(format_)
    chunk = _Chunk(geometry, first, data.size // form.itemsize)
    tally = _scanned(data, chunk, form, compiled.NO_FLOATS)
    return _stats(chunk, tally, _extremes(tally.extremes, format_), format_.scale)


def _measure_integers(data: npt.NDArray[np.uint8], dtype: str, geometry: Geometry, first: int) -> TensorStats:
    form = _integer_form(dtype)
    chunk = _Chunk(geometry, first, data.size // form.itemsize)
    values = (data != 0).view(np.uint8) if dtype == "BOOL" else data
    tally = _scanned(values, chunk, form, compiled.NO_INTEGERS)
    offset = 1 << 63 if dtype == "U64" else 0
    most, least = (int(extreme) + offset for extreme in tally.extremes)
    return _stats(chunk, tally, (least, most), 1.0)


def _scanned(
    data: npt.NDArray[np.uint8], chunk: _Chunk, form: compiled.Form, nothing: tuple[int, ...]
) -> compiled.Tally:
    """The tally of a chunk."""
    geometry = chunk.geometry
    tally = compiled.Tally.empty(geometry.blocks(chunk.count), nothing)
    compiled.scan(compiled.Run(data.ctypes.data, chunk.count, geometry.length, geometry.block), form, tally)
    return tally


@cache
def _integer_form(dtype: str) -> compiled.IntegerForm:
    itemsize = np.dtype(INTEGERS[dtype]).itemsize
    return compiled.IntegerForm(itemsize, nbytes(itemsize), INTEGERS[dtype](0))


@cache
def _float_form(format_: FloatFormat) -> compiled.FloatForm:
    """The format's thresholds as the scalars that the compiled loops compare."""
    word, itemsize = format_.word, np.dtype(format_.word).itemsize
    bfloat16 = format_.sums == "bfloat16"
    return compiled.FloatForm(
        itemsize=itemsize,
        unit=nbytes(itemsize),
        infinity=word(format_.infinity),
        has_infinity=format_.has_infinity,
        overflow=word(format_.overflow),
        kept=word(format_.kept),
        normal=None if format_.normal == format_.kept else word(format_.normal),
        shift=np.uint16(format_.shift) if format_.sums == "half" else None,
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
    chunk: _Chunk, tally: compiled.Tally, extremes: tuple[float | None, float | None], scale: float
) -> TensorStats:
    """The record of a tally whose sums are to be scaled (by a power of two, so exactly)."""
    counts, geometry = tally.counts.tolist(), chunk.geometry
    squares = _scaled(_exact_sum(tally.sums[:, 1]), scale * scale)
    whole_rows = geometry.has_rows and not geometry.long_rows
    l1_max, squares_max = tally.tops.tolist()
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
        squares=squares,
        zero_rows=counts[compiled.ZERO_ROWS] if whole_rows else 0,
        row_l1_max=l1_max * scale if whole_rows else None,
        row_squares_max=squares_max * scale * scale if whole_rows else None,
    )
    if whole_rows or not geometry.has_rows:
        return stats
    l1 = _scaled(_exact_sum(tally.sums[:, 0]), scale)
    row = OpenRow(chunk.first // geometry.length, geometry.length, chunk.count, stats.zeros, l1, squares)
    return replace(stats, open_rows=(row,)).merge(TensorStats())  # closes the row if nothing is missing


def _scaled(value: Fraction | None, factor: float) -> Fraction | None:
    return value if value is None or factor == 1.0 else value * Fraction(factor)


def _exact_sum(values: npt.NDArray[np.float64]) -> Fraction | None:
    """The exact sum of float64 numbers; None where one is infinite."""
    if not np.isfinite(values).all():
        return None
    ratios = [value.as_integer_ratio() for value in values.tolist()]
    common = max(denominator for _, denominator in ratios)  # all are powers of two
    return Fraction(sum(numerator * (common // denominator) for numerator, denominator in ratios), common)
