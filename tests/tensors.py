"""Tensors for the kernels' tests: any bits, and bits where something changes; how to measure and what to expect."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import oracle
from hypothesis import strategies as st

from gemma_doctor.kernels.geometry import Geometry
from gemma_doctor.kernels.measure import measure
from gemma_doctor.tensors import TensorStats

BOUND = 2.0**-21
"""Relative error of a sum that the kernels promise."""

DTYPES = (*oracle.FLOATS, *oracle.INTEGERS)

# Where something changes, in float16 or in the formats themselves.
MAGNITUDES = (
    *(0.0, 2.0**-149, 2.0**-126, 2.0**-80, 2.0**-63, 2.0**-40, 2.0**-25, 2.0**-24, 2.0**-14 - 2.0**-25, 2.0**-14),
    *(2.0**-9, 2.0**-6, 1.0, 256.0, 448.0, 57344.0, 65280.0, 65504.0, 65520.0, 65536.0, 2.0**60, 2.0**64, math.inf),
)

LENGTHS = (1, 2, 3, 31, 33, 255, 256, 257, 1023, 1025, 8191, 8192, 8193, 16385)
"""Lengths of rows: around what the loops take at once."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of arbitrary bits."""

    dtype: str
    shape: tuple[int, ...]
    raw: bytes

    @property
    def item(self) -> int:
        """Bytes of one element."""
        return item_size(self.dtype)


def item_size(dtype: str) -> int:
    """Bytes of one element."""
    code = oracle.INTEGERS[dtype] if dtype in oracle.INTEGERS else oracle.FLOATS[dtype][0]
    return np.dtype(code).itemsize


def at_offset(raw: bytes, offset: int) -> npt.NDArray[np.uint8]:
    """The bytes as a mapped file gives them: read-only, at any address."""
    return np.frombuffer(bytes(offset) + raw, np.uint8, offset=offset)


def chunks(tensor: Tensor, elements: int, offset: int = 0) -> list[TensorStats]:
    """The records of a tensor's chunks of about so many elements."""
    data, item = at_offset(tensor.raw, offset), tensor.item
    return [
        measure(data[first * item : stop * item], tensor.dtype, tensor.shape, first)
        for first, stop in Geometry.of(tensor.shape).edges(elements)
    ]


def whole(tensor: Tensor, elements: int = 1 << 62, offset: int = 0) -> TensorStats:
    """The record of a tensor, measured in chunks of about so many elements."""
    stats = TensorStats()
    for part in chunks(tensor, elements, offset):
        stats = stats.merge(part)
    return stats


def agree(stats: TensorStats, figures: oracle.Figures) -> None:
    """Asserts that a finished record has the oracle's figures: counts and extremes equal, sums within the bound."""
    assert stats.open_rows == ()
    for name, wanted in asdict(figures).items():
        found = getattr(stats, {"min": "minimum", "max": "maximum"}.get(name, name))
        if name in {"rms", "row_l1_max", "row_l2_max"} and wanted is not None and found is not None:
            assert math.isclose(found, wanted, rel_tol=BOUND), (name, found, wanted)
        else:
            assert found == wanted, (name, found, wanted)
            assert str(found) != "-0.0", name


@cache
def edges(dtype: str) -> tuple[int, ...]:
    """Codes at which something changes, and their neighbours, of either sign."""
    bits = 8 * item_size(dtype)
    if dtype in oracle.INTEGERS:
        return (0, 1, 2, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits - 1) + 1, (1 << bits) - 2, (1 << bits) - 1)
    signs = (0,) if dtype == "F8_E8M0" else (0, 1 << bits - 1)
    first_nan = _first_code(dtype, math.isnan, bits)
    found = {first_nan - 2, first_nan - 1, first_nan, (1 << bits - len(signs) + 1) - 1}
    for magnitude in MAGNITUDES:
        code = _first_code(dtype, lambda value, least=magnitude: not value < least, bits)  # type: ignore[misc]
        found |= {max(code - 1, 0), code, min(code + 1, first_nan)}
    return tuple(sorted(sign | code for code in found for sign in signs))


def _first_code(dtype: str, holds: Callable[[float], bool], bits: int) -> int:
    """The first code without a sign whose value has a property that all later ones have too."""
    stop = (1 << bits) - 1 if dtype == "F8_E8M0" else (1 << bits - 1) - 1
    return bisect_left(range(stop), True, key=lambda code: holds(value(dtype, code)))  # noqa: FBT003


def value(dtype: str, code: int) -> float:
    """The value of one code of a float dtype."""
    return float(oracle.decode(np.array([code], oracle.FLOATS[dtype][0]), dtype)[0])


def packed(dtype: str, codes: list[int]) -> bytes:
    """Codes as the bytes of a file."""
    return b"".join(code.to_bytes(item_size(dtype), "little") for code in codes)


@st.composite
def small(draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES) -> Tensor:
    """A tensor of few elements: every bit of each is drawn, or is at an edge."""
    dtype = draw(st.sampled_from(dtypes))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    code = st.integers(0, (1 << 8 * item_size(dtype)) - 1) | st.sampled_from(edges(dtype))
    count = math.prod(shape)
    return Tensor(dtype, shape, packed(dtype, draw(st.lists(code, min_size=count, max_size=count))))


@st.composite
def large(draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES, most: int = 20_000) -> Tensor:
    """A tensor of up to so many elements from a range of magnitudes, of one sign or both, edges strewn in."""
    dtype = draw(st.sampled_from(dtypes))
    length = draw(st.sampled_from([length for length in LENGTHS if length <= most]))
    rows = draw(st.integers(1, min(300, most // length)))
    shape = draw(st.sampled_from([(rows, length), (rows * length,), (rows, 1, length)]))
    bits = 8 * item_size(dtype)
    sign = 1 << bits - 1
    low, high = sorted(draw(st.tuples(*[st.integers(0, sign - 1) | st.sampled_from(edges(dtype))] * 2)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = rng.integers(low, high, rows * length, np.uint64, endpoint=True)
    signs = draw(st.sampled_from(["as drawn", "both", "negative"]))
    if signs == "both":
        codes ^= rng.integers(0, 1, codes.size, np.uint64, endpoint=True) * np.uint64(sign)
    elif signs == "negative":
        codes |= np.uint64(sign)
    for code in draw(st.lists(st.sampled_from(edges(dtype)), max_size=3)):
        codes[rng.integers(codes.size)] = code
    return Tensor(dtype, shape, codes.astype(f"<u{bits // 8}").tobytes())
