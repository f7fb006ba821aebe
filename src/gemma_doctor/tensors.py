"""Tensors: where one lies (``TensorInfo``), what its numbers are (``TensorStats``), and both together.

A weight on disk and an activation of a running model have the same figures. Standard library only.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, TypeAlias

__all__ = [
    "FP16_FIRST_INF",
    "FP16_MAX",
    "FRACTIONS",
    "MeasuredTensor",
    "OpenRow",
    "Role",
    "TensorInfo",
    "TensorStats",
]

FP16_MAX = 65504.0
"""Largest finite float16: (2 - 2**-10) * 2**15 (IEEE 754 binary16)."""

FP16_FIRST_INF = 65520.0
"""Smallest float32 that becomes inf in float16: half way from 65504 to 65536, ties go to even."""

FRACTIONS = ("F", "BF", "Q", "IQ", "TQ", "MXFP", "NVFP")
"""What the names of dtypes begin with that hold numbers with a fraction; from Q on GGUF's, which are quantised."""

Role: TypeAlias = Literal["conv", "linear", "norm", "embedding", "bias", "other"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies and how its bytes are to be read.

    Attributes:
        name: Key in the file's header.
        dtype: The format's own name of the dtype, such as ``"BF16"`` or ``"F8_E4M3"``.
        shape: Extents, outermost first; ``()`` for a scalar.
        file: Path of the file relative to the checkpoint's root, with forward slashes.
        start: Absolute offset of the first byte in the file.
        stop: Absolute offset one past the last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in its file."""
        return self.stop - self.start

    @property
    def is_float(self) -> bool:
        """Whether it holds numbers with a fraction (``"F32"``, ``"BF16"``, ``"F8_E4M3"``, GGUF's ``"Q4_K"`` …)."""
        return self.dtype.startswith(FRACTIONS)


@dataclass(frozen=True, slots=True)
class OpenRow:
    """A row (output channel) of which only a part has been measured.

    Attributes:
        row: Index of the row along the first axis.
        length: Elements in the whole row.
        seen: Elements measured so far.
        zeros: Zeros among them.
        l1: Exact sum of the measured segments' sums of magnitudes; None once one has left float64's range.
        squares: The same for the sums of squares.
    """

    row: int
    length: int
    seen: int
    zeros: int
    l1: Fraction | None
    squares: Fraction | None

    def merge(self, other: OpenRow) -> OpenRow:
        """Both parts of the same row together."""
        return OpenRow(
            row=self.row,
            length=self.length,
            seen=self.seen + other.seen,
            zeros=self.zeros + other.zeros,
            l1=_sum(self.l1, other.l1),
            squares=_sum(self.squares, other.squares),
        )


def _sum(a: Fraction | None, b: Fraction | None) -> Fraction | None:
    return None if a is None or b is None else a + b


def _least(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


def _most(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else max(a, b)


def _as_float(exact: Fraction | None) -> float:
    """The nearest float64; inf for a sum beyond its range."""
    if exact is None:
        return math.inf
    try:
        return float(exact)
    except OverflowError:
        return math.inf


@dataclass(frozen=True, slots=True)
class TensorStats:
    """What one pass over (a part of) a tensor tells: a commutative monoid.

    ``TensorStats()`` is the identity and :meth:`merge` is associative and commutative *exactly*: counts are
    integers, extremes are values of the tensor, and sums that cross a chunk's border are exact fractions of
    the kernel's block sums. So any chunking, order, number of threads or machines gives the same record
    (law: ``a.merge(b).merge(c) == a.merge(c.merge(b))``).

    Attributes:
        count: Elements measured.
        nan: NaNs among them.
        inf: Infinities among them, of either sign.
        zeros: Zeros of either sign.
        fp16_overflow: Finite elements that round to inf in float16 (magnitude >= 65520).
        fp16_subnormal: Non-zero elements that round to a float16 subnormal.
        fp16_underflow: Non-zero elements that round to zero in float16 (magnitude <= 2**-25).
        minimum: Smallest finite value; None where there is none. Integers stay integers.
        maximum: Largest finite value; None where there is none.
        squares: Sum of squares of the finite elements, an exact sum of float64 block sums; None once one has
            left float64's range.
        zero_rows: Rows, along the first axis, in which every element is zero; 0 below two dimensions.
        row_l1_max: Largest sum of magnitudes over a row's finite elements; None below two dimensions.
        row_squares_max: Largest sum of squares over a row; None below two dimensions.
        open_rows: Rows of which a part is still missing, by index. Empty in a finished record.
    """

    count: int = 0
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    fp16_overflow: int = 0
    fp16_subnormal: int = 0
    fp16_underflow: int = 0
    minimum: float | None = None
    maximum: float | None = None
    squares: Fraction | None = Fraction(0)
    zero_rows: int = 0
    row_l1_max: float | None = None
    row_squares_max: float | None = None
    open_rows: tuple[OpenRow, ...] = ()

    def merge(self, other: TensorStats) -> TensorStats:
        """The record of both parts together.

        Args:
            other: The record of a disjoint part of the same tensor.
        """
        closed, still_open = _join_rows(self.open_rows, other.open_rows)
        l1 = _most(self.row_l1_max, other.row_l1_max)
        squares = _most(self.row_squares_max, other.row_squares_max)
        for row in closed:
            l1 = _most(l1, _as_float(row.l1))
            squares = _most(squares, _as_float(row.squares))
        return TensorStats(
            count=self.count + other.count,
            nan=self.nan + other.nan,
            inf=self.inf + other.inf,
            zeros=self.zeros + other.zeros,
            fp16_overflow=self.fp16_overflow + other.fp16_overflow,
            fp16_subnormal=self.fp16_subnormal + other.fp16_subnormal,
            fp16_underflow=self.fp16_underflow + other.fp16_underflow,
            minimum=_least(self.minimum, other.minimum),
            maximum=_most(self.maximum, other.maximum),
            squares=_sum(self.squares, other.squares),
            zero_rows=self.zero_rows + other.zero_rows + sum(row.zeros == row.length for row in closed),
            row_l1_max=l1,
            row_squares_max=squares,
            open_rows=still_open,
        )

    @property
    def finite(self) -> int:
        """Elements that are neither NaN nor infinite."""
        return self.count - self.nan - self.inf

    @property
    def absmax(self) -> float | None:
        """Largest finite magnitude; None where no element is finite."""
        if self.minimum is None or self.maximum is None:
            return None
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def rms(self) -> float | None:
        """Root of the mean square of the finite elements; None where it has no finite value."""
        if self.squares is None or not self.finite:
            return None
        return math.sqrt(self.squares / self.finite)

    @property
    def row_l2_max(self) -> float | None:
        """Largest Euclidean norm of a row; None below two dimensions."""
        return None if self.row_squares_max is None else math.sqrt(self.row_squares_max)


def _join_rows(left: tuple[OpenRow, ...], right: tuple[OpenRow, ...]) -> tuple[list[OpenRow], tuple[OpenRow, ...]]:
    """Rows that the two parts complete between them, and those that stay open (sorted by index)."""
    if not left and not right:
        return [], ()
    rows = {row.row: row for row in left}
    for row in right:
        rows[row.row] = rows[row.row].merge(row) if row.row in rows else row
    closed = [row for row in rows.values() if row.seen == row.length]
    still_open = tuple(rows[index] for index in sorted(rows) if rows[index].seen != rows[index].length)
    return closed, still_open


@dataclass(frozen=True, slots=True)
class MeasuredTensor:
    """One tensor with its figures and its part in the model.

    Attributes:
        info: Where it lies.
        stats: What its numbers are (a finished record).
        role: What it does: conv, linear, norm, embedding, bias or other.
        limit: Largest magnitude its outputs may have: 65504, or less where the next op squares them.
            None where the tensor has no output channels.
        elements: Its elements, where they are few and bounds on activations want each of them; else None.
    """

    info: TensorInfo
    stats: TensorStats
    role: Role
    limit: float | None = None
    elements: array[float] | None = field(default=None, repr=False, compare=False)

    @property
    def input_budget(self) -> float | None:
        """Largest |x| for which no output can leave its limit: limit / row_l1_max (Hoelder's inequality)."""
        l1 = self.stats.row_l1_max
        return None if self.limit is None or not l1 or math.isinf(l1) else self.limit / l1
