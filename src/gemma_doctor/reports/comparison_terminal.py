"""What lies between two reports, for people at a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gemma_doctor.records import Finding
from gemma_doctor.reports.comparison import Changed, Comparison, Kept
from gemma_doctor.reports.digest import digest, groups
from gemma_doctor.reports.entries import write_commands, write_entries, write_names
from gemma_doctor.reports.sheet import SEVERITY_STYLES, Sheet
from gemma_doctor.reports.wording import counted, verdict

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["render", "render_brief"]

_ROWS = 10  # tensors of a table


def render(comparison: Comparison, console: Console, commands: Sequence[tuple[str, str]] = ()) -> None:
    """Print both verdicts, what is gone, new and changed.

    Args:
        comparison: What to print.
        console: Where to print.
        commands: What to do next: commands that can be copied, and what each is for.
    """
    sheet = Sheet.on(console)
    _verdicts(comparison, sheet)
    _gone(comparison.gone, sheet)
    _new(comparison.new, sheet)
    _severities(comparison.kept, sheet)
    _changed(comparison.changed, sheet)
    _names("Tensors that are gone", (tensor.info.name for tensor in comparison.removed), sheet)
    _names("Tensors that are new", (tensor.info.name for tensor in comparison.added), sheet)
    _remarks(comparison, sheet)
    write_commands(commands, sheet)


def render_brief(comparison: Comparison, console: Console) -> None:
    """Print both verdicts, what is new, and why the two may not be comparable."""
    sheet = Sheet.on(console)
    _verdicts(comparison, sheet)
    _new(comparison.new, sheet)
    _remarks(comparison, sheet)


def _verdicts(comparison: Comparison, sheet: Sheet) -> None:
    for when, report in (("Before", comparison.before), ("After", comparison.after)):
        sheet.paragraph((f"{when}: ", "bold"), f"{report.source.uri}: {verdict(report)}", hang=2)
    counts = (
        f"{counted(len(comparison.gone), 'finding')} gone, {len(comparison.new):,} new, {len(comparison.kept):,} kept; "
        f"{counted(len(comparison.changed), 'tensor')} changed, {len(comparison.removed):,} gone, "
        f"{len(comparison.added):,} new."
    )
    sheet.paragraph(("Between them: ", "bold"), counts, hang=2)


def _gone(findings: Sequence[Finding], sheet: Sheet) -> None:
    """Where they were: what they said no longer holds."""
    _title("Gone", findings, sheet)
    for group in groups(findings):
        _rule(group[0], sheet)
        write_names(filter(None, (finding.tensor or finding.file for finding in group)), sheet)


def _new(findings: Sequence[Finding], sheet: Sheet) -> None:
    _title("New", findings, sheet)
    for group in groups(findings):
        _rule(group[0], sheet)
        write_entries(digest(group), sheet)


def _title(title: str, things: Sequence[Finding], sheet: Sheet) -> None:
    if things:
        sheet.blank()
        sheet.paragraph((f"{title}: {counted(len(things), 'finding')}", "bold"))


def _rule(finding: Finding, sheet: Sheet) -> None:
    sheet.paragraph((finding.severity, SEVERITY_STYLES[finding.severity]), f" {finding.rule} {finding.name}")


def _severities(kept: Iterable[Kept], sheet: Sheet) -> None:
    moved = [pair for pair in kept if pair.graver or pair.lighter]
    if not moved:
        return
    sheet.blank()
    sheet.paragraph((f"Of another severity: {counted(len(moved), 'finding')}", "bold"))
    for pair in moved[:_ROWS]:
        what = f"{pair.after.rule} {pair.before.severity} before, {pair.after.severity} now"
        sheet.name(pair.after.tensor or pair.after.file or "", indent=2, after=f" {what}")
    if len(moved) > _ROWS:
        sheet.paragraph(f"and {len(moved) - _ROWS:,} more", indent=2)


def _changed(changed: Sequence[Changed], sheet: Sheet) -> None:
    if not changed:
        return
    sheet.blank()
    sheet.paragraph((f"Changed: {counted(len(changed), 'tensor')}", "bold"))
    sheet.table(("tensor", "dtype", "max abs before", "after"), [_row(pair) for pair in changed[:_ROWS]])
    if len(changed) > _ROWS:
        sheet.paragraph(f"and {len(changed) - _ROWS:,} more", indent=2)


def _row(pair: Changed) -> tuple[str, ...]:
    before, after = pair.before.info.dtype, pair.after.info.dtype
    sizes = (pair.before.stats.absmax, pair.after.stats.absmax)
    dtype = after if before == after else f"{before} to {after}"
    return (pair.after.info.name, dtype, *("-" if size is None else f"{size:g}" for size in sizes))


def _names(title: str, names: Iterable[str], sheet: Sheet) -> None:
    held = list(names)
    if held:
        sheet.blank()
        sheet.paragraph((f"{title}: {len(held):,}", "bold"))
        write_names(held, sheet)


def _remarks(comparison: Comparison, sheet: Sheet) -> None:
    if comparison.remarks:
        sheet.blank()
    for remark in comparison.remarks:
        sheet.paragraph(("Remark: ", "bold"), remark, hang=2)
