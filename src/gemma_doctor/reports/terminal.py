"""The report for people at a terminal: verdict, findings, the largest convolutions, coverage, what to do next.

On a terminal, text is wrapped and names are elided to its width; in a pipe, every name and sentence stays whole on its
line and there are no escape codes. Colour only repeats what a word says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gemma_doctor.records import Report, Skipped
from gemma_doctor.reports.digest import digest, groups
from gemma_doctor.reports.entries import write_commands, write_entries, write_names
from gemma_doctor.reports.names import common_prefix
from gemma_doctor.reports.sheet import SEVERITY_STYLES, Sheet
from gemma_doctor.reports.wording import counted, parameters, size, state, verdict
from gemma_doctor.tensors import MeasuredTensor

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["render", "render_brief"]

_ROWS = 5  # as many as the published table of Gemma 3n's convolutions
_WIDE = 72  # columns from which the table has room for the limit
_LEAST, _MOST = 0.01, 1e6  # between them a number is written without an exponent


def render(report: Report, console: Console, commands: Sequence[tuple[str, str]] = ()) -> None:
    """Print the whole report.

    Args:
        report: What to print.
        console: Where to print.
        commands: What to do next: commands that can be copied, and what each is for.
    """
    sheet = Sheet.on(console)
    _verdict(report, sheet)
    _source(report, sheet)
    _findings(report, sheet)
    _convolutions(report, sheet)
    sheet.blank()
    _coverage(report, sheet)
    _skipped(report.coverage.skipped, sheet)
    _set_aside(report, sheet)
    write_commands(commands, sheet)


def render_brief(report: Report, console: Console) -> None:
    """Print the verdict, the findings and what was left out."""
    sheet = Sheet.on(console)
    _verdict(report, sheet)
    _findings(report, sheet)
    if report.coverage.skipped:
        sheet.blank()
    _skipped(report.coverage.skipped, sheet)


def _verdict(report: Report, sheet: Sheet) -> None:
    head = state(report)
    worst = report.worst if report.complete else "error"
    style = "bold green" if worst is None else SEVERITY_STYLES[worst]
    sheet.paragraph((head, style), verdict(report)[len(head) :])


def _source(report: Report, sheet: Sheet) -> None:
    source = report.source
    files = counted(len(source.files), f"{source.format} file")
    judged = f"judged for {report.target_dtype} and {report.loader}"
    sheet.paragraph((f"{source.uri}: {source.architecture}, {files}, {judged}", "dim"), hang=2)


def _findings(report: Report, sheet: Sheet) -> None:
    for group in groups(report.findings):
        first = group[0]
        how_many = f" ({counted(len(group), 'finding')})" if len(group) > 1 else ""
        sheet.blank()
        sheet.paragraph(
            (first.severity, SEVERITY_STYLES[first.severity]), f" {first.rule} ", (first.name, "bold"), how_many
        )
        write_entries(digest(group), sheet)


def _convolutions(report: Report, sheet: Sheet) -> None:
    convs = [tensor for tensor in report.tensors if tensor.role == "conv" and tensor.stats.absmax is not None]
    if not convs or report.target_dtype != "float16":
        return
    largest = sorted(convs, key=lambda tensor: -(tensor.stats.absmax or 0))[:_ROWS]
    prefix = common_prefix([tensor.info.name for tensor in largest])
    sheet.blank()
    sheet.paragraph(("Largest convolution weights", "bold"), f" ({len(largest)} of {len(convs):,})")
    header = (f"in {prefix}" if prefix else "tensor", "max abs", "input budget", "limit")
    columns = len(header) if sheet.width is None or sheet.width >= _WIDE else len(header) - 1
    sheet.table(header[:columns], [_row(tensor, len(prefix))[:columns] for tensor in largest])
    sheet.paragraph(
        ("Inputs up to the budget cannot lift any output over its limit, whatever their signs.", "dim"), indent=2
    )


def _row(tensor: MeasuredTensor, cut: int) -> tuple[str, ...]:
    numbers = (tensor.stats.absmax, tensor.input_budget)
    limit = "-" if tensor.limit is None else f"{tensor.limit:g}"
    return (tensor.info.name[cut:], *("-" if number is None else _number(number) for number in numbers), limit)


def _number(number: float) -> str:
    """Three decimals, as in the published table; an exponent where they would not do."""
    return f"{number:,.3f}" if not number or _LEAST <= number < _MOST else f"{number:.3e}"


def _coverage(report: Report, sheet: Sheet) -> None:
    covered, seconds = report.coverage, report.seconds
    nbytes = sum(tensor.info.nbytes for tensor in report.tensors)
    numel = sum(tensor.info.numel for tensor in report.tensors)
    speed = f" ({size(nbytes / seconds)}/s)" if seconds > 0 else ""
    sheet.paragraph(
        f"Measured {covered.measured:,} of {counted(covered.expected, 'tensor')}: {parameters(numel)}, "
        f"{size(nbytes)} in {seconds:.3g} s{speed}.",
        hang=2,
    )


def _skipped(skipped: Sequence[Skipped], sheet: Sheet) -> None:
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        reasons.setdefault(item.reason, []).append(item.tensor)
    for reason, names in reasons.items():
        sheet.paragraph((f"Not measured: {counted(len(names), 'tensor')}", "bold"), f", {reason}", hang=2)
        write_names(names, sheet)


def _set_aside(report: Report, sheet: Sheet) -> None:
    for (by, origin), number in Counter((item.by, item.origin) for item in report.suppressed).items():
        where = f" in {origin}" if origin else ""
        sheet.paragraph((f"Set aside: {counted(number, 'finding')}", "bold"), f", by {by}{where}.", hang=2)
    for remark in report.remarks:
        sheet.paragraph(("Remark: ", "bold"), remark, hang=2)
