"""The report for people at a terminal: verdict, findings, the largest convolutions, coverage, what to do next.

On a terminal, text is wrapped and names are elided to its width; in a pipe, every name and sentence stays whole on its
line and there are no escape codes. Colour only repeats what a word says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gemma_doctor.records import Proof, Report
from gemma_doctor.reports.convolutions import HEADER, MEANING, largest
from gemma_doctor.reports.digest import digest, groups
from gemma_doctor.reports.entries import write_commands, write_entries, write_names
from gemma_doctor.reports.runs import write_runs
from gemma_doctor.reports.sheet import SEVERITY_STYLES, Sheet
from gemma_doctor.reports.wording import assumed, counted, measured, proved, state, unmeasured, verdict

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["render", "render_brief"]

_WIDE = 72  # columns from which the table has room for the limit


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
    write_runs(report, sheet)
    sheet.blank()
    sheet.paragraph(measured(report), hang=2)
    _proof(report.proof, sheet)
    _skipped(report, sheet)
    _set_aside(report, sheet)
    write_commands(commands, sheet)


def render_brief(report: Report, console: Console) -> None:
    """Print the verdict, the findings and what was left out."""
    sheet = Sheet.on(console)
    _verdict(report, sheet)
    _findings(report, sheet)
    if report.coverage.skipped:
        sheet.blank()
    _skipped(report, sheet)


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
    table = largest(report)
    if table is None:
        return
    sheet.blank()
    sheet.paragraph(("Largest convolution weights", "bold"), f" ({len(table.rows)} of {table.total:,})")
    header = (f"in {table.prefix}" if table.prefix else "tensor", *HEADER)
    columns = len(header) if sheet.width is None or sheet.width >= _WIDE else len(header) - 1
    sheet.table(header[:columns], [row[:columns] for row in table.rows])
    sheet.paragraph((MEANING, "dim"), indent=2)


def _proof(proof: Proof | None, sheet: Sheet) -> None:
    if proof is None:
        return
    sheet.paragraph(("Proved safe: ", "bold"), f"{proved(proof)} (gemma-doctor rule GD301 says how).", hang=2)
    if assumed(proof):
        sheet.paragraph(("Assumed: ", "bold"), f"{assumed(proof)}.", hang=2)


def _skipped(report: Report, sheet: Sheet) -> None:
    for number, reason, names in unmeasured(report):
        if report.verification is not None:  # runs are few
            sheet.paragraph((f"Not judged: {'; '.join(names)}", "bold"), f": {reason}", hang=2)
            continue
        sheet.paragraph((number, "bold"), f", {reason}", hang=2)
        write_names(names, sheet)


def _set_aside(report: Report, sheet: Sheet) -> None:
    for (by, origin), number in Counter((item.by, item.origin) for item in report.suppressed).items():
        where = f" in {origin}" if origin else ""
        sheet.paragraph((f"Set aside: {counted(number, 'finding')}", "bold"), f", by {by}{where}.", hang=2)
    for remark in report.remarks:
        sheet.paragraph(("Remark: ", "bold"), remark, hang=2)
