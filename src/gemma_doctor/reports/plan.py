"""A plan for people who are to judge it, and what became of it.

Each pass is a table of what it does to which tensors and what that costs in bytes, with the reasons under it; then
comes what is left, and why. Families of tensors are folded and long lists are cut: a saved plan holds every edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gemma_doctor.choices import SEVERITIES
from gemma_doctor.plans import Applied, Edit, Left, Leftover, Plan
from gemma_doctor.records import Exactness
from gemma_doctor.reports.digest import Statement, folded
from gemma_doctor.reports.edits import EXACTNESS, cost, lines, signed, subject
from gemma_doctor.reports.entries import write_commands, write_entries
from gemma_doctor.reports.names import common_prefix, elide, safe_text
from gemma_doctor.reports.sheet import SEVERITY_STYLES, Sheet
from gemma_doctor.reports.wording import counted, listed, size
from gemma_doctor.tensors import TensorInfo

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["render_applied", "render_brief", "render_changed", "render_plan", "render_pushed", "render_unwritten"]

_ROWS = 10  # rows of a pass's table
_DOES = 28  # characters for what an edit does: the name beside it needs the rest of the line
_REASONS = 3  # reasons of a pass that are shown in full
_STYLES: Mapping[Exactness, str] = {
    "exact": "bold green",
    "eps": "bold cyan",
    "rounded": "bold yellow",
    "lossy": "bold red",
}


def render_plan(plan: Plan, tensors: Mapping[str, TensorInfo], console: Console) -> None:
    """Print what is to be done, by which pass, why and at what cost; and what is left, and why.

    Args:
        plan: The plan.
        tensors: The source's tensors, by name.
        console: Where to print.
    """
    sheet = Sheet.on(console)
    _head(plan, tensors, sheet)
    groups: dict[tuple[str, Exactness], list[Edit]] = {}
    for edit in plan.edits:
        groups.setdefault((edit.pass_name, edit.exactness), []).append(edit)
    for (name, exactness), edits in groups.items():
        sheet.blank()
        sheet.paragraph((name, "bold"), " (", (exactness, _STYLES[exactness]), f": {EXACTNESS[exactness]})", hang=2)
        _table(edits, tensors, sheet)
        _reasons(edits, sheet)
    _left(plan.left, sheet)


def render_brief(plan: Plan, tensors: Mapping[str, TensorInfo], console: Console) -> None:
    """Print how much is to be done, and what is left, and why."""
    sheet = Sheet.on(console)
    _head(plan, tensors, sheet)
    _left(plan.left, sheet)


def render_applied(applied: Applied, console: Console, commands: Sequence[tuple[str, str]] = ()) -> None:
    """Print what was written.

    Args:
        applied: What was done.
        console: Where to print.
        commands: What to do next: commands that can be copied, and what each is for.
    """
    sheet = Sheet.on(console)
    linked = f" and {size(applied.bytes_linked)} hard-linked" if applied.bytes_linked else ""
    sheet.blank()
    sheet.paragraph(
        ("Mended", "bold green"),
        f": {applied.output} holds {counted(len(applied.files) + 1, 'file')}: {size(applied.bytes_written)} written"
        f"{linked} in {applied.seconds:.3g} s, read back and compared with the source and the plan.",
        hang=2,
    )
    for remark in (*applied.remarks, *map(_cleared, applied.removed_leftovers)):
        sheet.paragraph(("Remark: ", "bold"), remark, hang=2)
    write_commands(commands, sheet)


def render_pushed(repo: str, address: str, console: Console, commands: Sequence[tuple[str, str]] = ()) -> None:
    """Print where the output has been sent.

    Args:
        repo: The repository.
        address: The commit's address.
        console: Where to print.
        commands: What to do next: commands that can be copied, and what each is for.
    """
    sheet = Sheet.on(console)
    sheet.blank()
    sheet.paragraph(("Pushed", "bold green"), f" to {repo} in one commit, model card included: {address}", hang=2)
    write_commands(commands, sheet)


def render_changed(applied: Applied, console: Console, commands: Sequence[tuple[str, str]] = ()) -> None:
    """Print what was changed in the source itself.

    Args:
        applied: What was done.
        console: Where to print.
        commands: What to do next: commands that can be copied, and what each is for.
    """
    sheet = Sheet.on(console)
    sheet.blank()
    sheet.paragraph(
        ("Mended in place", "bold green"),
        f": {applied.output}, read back and compared with what it was and with the plan.",
        hang=2,
    )
    for remark in applied.remarks:
        sheet.paragraph(("Remark: ", "bold"), remark, hang=2)
    write_commands(commands, sheet)


def render_unwritten(why: str, console: Console, commands: Sequence[tuple[str, str]] = ()) -> None:
    """Print that nothing was written.

    Args:
        why: A sentence.
        console: Where to print.
        commands: What to do next: commands that can be copied, and what each is for.
    """
    sheet = Sheet.on(console)
    sheet.blank()
    sheet.paragraph(("Nothing was written.", "bold"), f" {why}", hang=2)
    write_commands(commands, sheet)


def _head(plan: Plan, tensors: Mapping[str, TensorInfo], sheet: Sheet) -> None:
    if not plan.edits:
        _nothing(plan, sheet)
        return
    rules = listed(sorted({edit.reason.rule for edit in plan.edits}))
    before = sum(tensor.nbytes for tensor in tensors.values())
    after = before + sum(cost(edit, tensors) for edit in plan.edits)
    bytes_after = "and stay that size" if after == before else f"and become {size(after)}"
    sheet.paragraph(
        (f"Plan: {counted(len(plan.edits), 'edit')}", "bold"),
        f" for {rules}. The tensors take {size(before)} {bytes_after}.",
        hang=2,
    )


def _nothing(plan: Plan, sheet: Sheet) -> None:
    if all(item.severity == "note" for item in plan.left):
        why = "no rule found anything but notes" if plan.left else "no rule found anything"
        sheet.paragraph(("Healthy, nothing to mend", "bold green"), f": {why}.", hang=2)
    else:
        sheet.paragraph(("Nothing is mended", "bold red"), ": see what is left, and why.", hang=2)


def _table(edits: Sequence[Edit], tensors: Mapping[str, TensorInfo], sheet: Sheet) -> None:
    """The edits of a pass, a row for each family of tensors to which it does the same."""
    prefix = _shared(edits)
    rows = [
        (
            _counted_name(line.name[len(prefix) :], line.count),
            elide(safe_text(line.does), _DOES),
            line.rule,
            signed(line.cost),
        )
        for line in lines(edits, tensors)
    ]
    sheet.table((f"in {prefix}" if prefix else "what", "edit", "for", "bytes"), rows[:_ROWS])
    if len(rows) > _ROWS:
        sheet.paragraph(f"and {len(rows) - _ROWS:,} more such lines; --save-plan writes every edit", indent=2)


def _reasons(edits: Sequence[Edit], sheet: Sheet) -> None:
    """Why, the worst first; the names only where there is more than one reason."""
    cut = len(_shared(edits))
    entries = folded(Statement(subject(edit)[cut:], edit.reason.message, edit.reason.evidence) for edit in edits)
    if len(entries) == 1:
        sheet.paragraph(entries[0].message, indent=6)
    else:
        write_entries(entries, sheet, _REASONS)


def _left(left: Sequence[Left], sheet: Sheet) -> None:
    """What stays, the gravest first."""
    groups: dict[tuple[str, str], list[Left]] = {}
    for item in sorted(left, key=lambda item: SEVERITIES.index(item.severity)):
        groups.setdefault((item.severity, item.rule), []).append(item)
    if groups:
        sheet.blank()
        sheet.paragraph(("Left as it is:", "bold"))
    for (_, rule), items in groups.items():
        severity = items[0].severity
        sheet.paragraph((severity, SEVERITY_STYLES[severity]), f" {rule}")
        write_entries(folded(Statement(item.tensor, item.reason, {}) for item in items), sheet, _REASONS)


def _shared(edits: Sequence[Edit]) -> str:
    """What the names of a pass's tensors begin with, which is said once."""
    return common_prefix([subject(edit) for edit in edits])


def _counted_name(name: str, members: int) -> str:
    return f"{name} ({members})" if members > 1 else name


def _cleared(leftover: Leftover) -> str:
    if leftover.restored is not None:
        return f"{leftover.restored} is back: a run that was killed had moved it to {leftover.name}"
    return f"deleted {leftover.name}, {size(leftover.nbytes)} that a run that was killed had left"
