"""The nouns: frozen records that flow down the straight line.

``TensorInfo`` says where a tensor lies, ``TensorStats`` what its numbers are, ``Finding`` what is wrong,
``Report`` all of it together. Nothing here reads a file, and nothing here needs more than the standard
library, so every other room may import it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, Protocol, TypeAlias

__all__ = [
    "FAIL_ON",
    "FAULT_RULES",
    "FP16_FIRST_INF",
    "FP16_MAX",
    "LOADERS",
    "SCHEMA_VERSION",
    "SEVERITIES",
    "TARGET_DTYPES",
    "Coverage",
    "FailOn",
    "Fault",
    "FileInfo",
    "Finding",
    "Loader",
    "MeasuredTensor",
    "OpenRow",
    "Progress",
    "Repair",
    "Report",
    "Role",
    "Severity",
    "Skipped",
    "Source",
    "Suppressed",
    "TargetDtype",
    "TensorInfo",
    "TensorStats",
]

SCHEMA_VERSION = 1
"""Version of the report's JSON layout."""

FP16_MAX = 65504.0
"""Largest finite float16: (2 - 2**-10) * 2**15 (IEEE 754 binary16)."""

FP16_FIRST_INF = 65520.0
"""Smallest float32 that becomes inf in float16: half way from 65504 to 65536, ties go to even."""

Severity: TypeAlias = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From grave to light."""

FailOn: TypeAlias = Literal["error", "warning", "note", "never"]
FAIL_ON: tuple[FailOn, ...] = ("error", "warning", "note", "never")
"""The least severity that makes a scan fail; the first is the default."""

Loader: TypeAlias = Literal["transformers", "transformers-pre-5.6", "vllm", "llama.cpp"]
LOADERS: tuple[Loader, ...] = ("transformers", "transformers-pre-5.6", "vllm", "llama.cpp")
"""What the tensors must satisfy; the first is the default."""

TargetDtype: TypeAlias = Literal["float16", "bfloat16"]
TARGET_DTYPES: tuple[TargetDtype, ...] = ("float16", "bfloat16")
"""What the weights are judged for; the first is the default."""

Role: TypeAlias = Literal["conv", "linear", "norm", "embedding", "bias", "other"]
Exactness: TypeAlias = Literal["exact", "eps", "rounded", "lossy"]
Scalar: TypeAlias = "str | int | float | bool | None"


class Progress(Protocol):
    """Who wants to know how far a long pass over bytes is. Called from one thread."""

    def start(self, total_bytes: int) -> None:
        """It begins; so many bytes will be passed over."""

    def advance(self, nbytes: int) -> None:
        """So many more bytes are done."""


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
        """Whether it holds floating-point numbers (``"F32"``, ``"BF16"``, ``"F8_E4M3"`` …)."""
        return self.dtype.startswith(("F", "BF"))


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One tensor file of a checkpoint.

    Attributes:
        name: Path relative to the checkpoint's root, with forward slashes.
        size: Bytes on disk.
        metadata: The header's ``__metadata__``, or None where it has none.
        tensors: How many tensors its header lists; 0 where the header cannot be read.
    """

    name: str
    size: int
    metadata: Mapping[str, str] | None = None
    tensors: int = 0


FaultKind: TypeAlias = Literal["unreadable-shard", "index-mismatch", "unsafe-path"]
FAULT_RULES: Mapping[FaultKind, str] = {
    "unreadable-shard": "GD001",
    "index-mismatch": "GD002",
    "unsafe-path": "GD003",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with the files themselves, met while the checkpoint was opened.

    Attributes:
        kind: Name of the rule that reports it.
        file: The file at fault, relative to the checkpoint's root.
        message: One sentence: what, where, against which limit, and the next step.
        tensor: The tensor concerned, where there is one.
        evidence: The numbers behind the message.
    """

    kind: FaultKind
    file: str
    message: str
    tensor: str | None = None
    evidence: Mapping[str, Scalar] = field(default_factory=dict)


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
    """

    info: TensorInfo
    stats: TensorStats
    role: Role
    limit: float | None = None

    @property
    def input_budget(self) -> float | None:
        """Largest |x| for which no output can leave its limit: limit / row_l1_max (Hoelder's inequality)."""
        l1 = self.stats.row_l1_max
        return None if self.limit is None or not l1 or math.isinf(l1) else self.limit / l1


@dataclass(frozen=True, slots=True)
class Repair:
    """The pass that mends a finding, and how exactly.

    Attributes:
        pass_name: Name of the pass.
        exactness: ``exact`` (same function, or same bytes), ``eps`` (up to a norm's eps), ``rounded`` (storage
            rounding) or ``lossy`` (another function).
    """

    pass_name: str
    exactness: Exactness


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a rule found.

    Attributes:
        rule: The rule's id, such as ``"GD101"``.
        name: The rule's name, such as ``"nonfinite-weight"``.
        severity: ``error``, ``warning`` or ``note``.
        message: What, where, how much, against which limit.
        tensor: The tensor concerned; None where it is the checkpoint.
        file: The file concerned, relative to the checkpoint's root.
        evidence: The numbers with their threshold; JSON scalars only, never NaN or inf.
        repair: The pass that mends it, or None.
    """

    rule: str
    name: str
    severity: Severity
    message: str
    tensor: str | None = None
    file: str | None = None
    evidence: Mapping[str, Scalar] = field(default_factory=dict)
    repair: Repair | None = None


SuppressedBy: TypeAlias = Literal["per-tensor-ignores", "allow", "baseline"]


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A finding that does not count, and why.

    Attributes:
        finding: What was found.
        by: What set it aside: ``"per-tensor-ignores"``, ``"allow"`` or ``"baseline"``.
        reason: The user's reason; empty where the mechanism asks for none.
        origin: The file that says so, as messages call it; empty where it was said in Python.
    """

    finding: Finding
    by: SuppressedBy
    reason: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A selected tensor that was not measured, and why."""

    tensor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of what was selected has been measured.

    Attributes:
        expected: Tensors that were selected.
        measured: Tensors measured to their last element.
        skipped: The others, each with its reason.
    """

    expected: int
    measured: int
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """What was examined.

    Attributes:
        uri: The SOURCE as it was given.
        revision: Commit of a Hub repository; None for local files.
        format: ``"safetensors"`` or ``"gguf"``.
        architecture: The model family that the config names (``"gemma3n"``, ``"gemma3"``, ``"generic"`` …).
        files: The tensor files.
    """

    uri: str
    revision: str | None
    format: str
    architecture: str
    files: tuple[FileInfo, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one examination; every renderer draws from it and decides nothing.

    Attributes:
        version: Version of gemma-doctor that made it.
        source: What was examined.
        target_dtype: The dtype the weights were judged for: ``"float16"`` or ``"bfloat16"``.
        loader: The loader that the tensors were judged for.
        coverage: How much was measured.
        findings: What is wrong, gravest rules first, in file order within a rule.
        suppressed: Findings that the user has set aside.
        tensors: Every measured tensor, in file order.
        seconds: Wall-clock time of the examination.
        activations: What a verification measured; empty for a scan.
        remarks: What else the user should know, a sentence each: baseline and allow entries without a finding.
    """

    version: str
    source: Source
    target_dtype: TargetDtype
    loader: Loader
    coverage: Coverage
    findings: tuple[Finding, ...]
    tensors: tuple[MeasuredTensor, ...]
    seconds: float
    suppressed: tuple[Suppressed, ...] = ()
    activations: tuple[Mapping[str, Any], ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every selected tensor was measured, and at least one."""
        return 0 < self.coverage.measured == self.coverage.expected

    def count(self, severity: Severity) -> int:
        """Number of findings of one severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def worst(self) -> Severity | None:
        """Gravest severity among the findings; None where there are none."""
        return next((s for s in SEVERITIES if self.count(s)), None)
