"""The convolutions with the largest weights: the published table, in every report for people."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_doctor.records import Report
from gemma_doctor.reports.names import common_prefix
from gemma_doctor.tensors import MeasuredTensor

__all__ = ["HEADER", "MEANING", "Table", "largest", "number"]

HEADER = ("max abs", "input budget", "limit")
MEANING = "Inputs up to the budget cannot lift any output over its limit, whatever their signs."
_ROWS = 5  # as many as the published table of Gemma 3n's convolutions
_LEAST, _MOST = 0.01, 1e6  # between them a number is written without an exponent


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a table, the largest first.

    Attributes:
        prefix: What all names begin with.
        rows: (rest of the name, and what :data:`HEADER` says).
        total: Convolutions in the checkpoint.
    """

    prefix: str
    rows: tuple[tuple[str, ...], ...]
    total: int


def largest(report: Report) -> Table | None:
    """The table; None where there is no convolution, or the weights are not judged for float16."""
    convs = [tensor for tensor in report.tensors if tensor.role == "conv" and tensor.stats.absmax is not None]
    if not convs or report.target_dtype != "float16":
        return None
    chosen = sorted(convs, key=lambda tensor: -(tensor.stats.absmax or 0))[:_ROWS]
    prefix = common_prefix([tensor.info.name for tensor in chosen])
    return Table(prefix, tuple(_row(tensor, len(prefix)) for tensor in chosen), len(convs))


def _row(tensor: MeasuredTensor, cut: int) -> tuple[str, ...]:
    limit = "-" if tensor.limit is None else f"{tensor.limit:g}"
    return (tensor.info.name[cut:], number(tensor.stats.absmax), number(tensor.input_budget), limit)


def number(value: float | None) -> str:
    """Three decimals, as in the published table; an exponent where they would not do, and ``-`` for None."""
    if value is None:
        return "-"
    return f"{value:,.3f}" if not value or _LEAST <= abs(value) < _MOST else f"{value:.3e}"
