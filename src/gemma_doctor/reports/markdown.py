"""The report in GitHub-flavoured Markdown: for a pull request, and for ``GITHUB_STEP_SUMMARY``.

It stays below the 65,536 characters of a comment (and so below the 1 MiB of a step's summary): what does not fit is
counted, never dropped in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from gemma_doctor.choices import SEVERITIES
from gemma_doctor.plans import Edit, Left, Plan
from gemma_doctor.records import Exactness, Finding, Report
from gemma_doctor.reports import convolutions
from gemma_doctor.reports.digest import Entry, digest, groups
from gemma_doctor.reports.markdown_text import cell, code, markup, prose
from gemma_doctor.reports.markdown_verification import verification_lines
from gemma_doctor.reports.names import clipped, fold
from gemma_doctor.reports.wording import assumed, counted, listed, measured, proved, state, unmeasured, verdict

__all__ = ["left_lines", "names", "to_markdown"]

MOST = 65_536
"""Characters of a comment on GitHub, and of the whole document."""

_FINDINGS = 40_000  # characters for the findings; what else there is takes less than the rest
_SMALLEST = 2_000  # characters of a rule's findings without their entries; its names are at most 140 escaped ones
_ENTRIES = 20  # of a rule
_NAMES = 3  # of an entry
_LINES = 10  # of any other list


def to_markdown(report: Report, commands: Sequence[tuple[str, str]] = (), plan: Plan | None = None) -> str:
    """The report as a Markdown document that ends in a newline.

    Args:
        report: What to show.
        commands: What to do next: commands that can be copied, and what each is for.
        plan: What is to be done to the checkpoint.
    """
    parts = (
        _head(report),
        _findings(report),
        _plan(plan) if plan is not None else (),
        verification_lines(report),
        _convolutions(report),
        _coverage(report),
        _commands(commands),
    )
    return "\n\n".join("\n".join(lines) for part in parts if (lines := list(part))) + "\n"


def _head(report: Report) -> Iterator[str]:
    head, source = state(report), report.source
    files = counted(len(source.files), f"{source.format} file")
    judged = f"judged for {report.target_dtype} and {report.loader}"
    yield f"### gemma-doctor: {prose(head)}"
    yield ""
    yield f"**{prose(head)}**{prose(verdict(report)[len(head) :])}"
    yield ""
    yield f"{code(source.uri)}: {prose(f'{clipped(source.architecture, 100)}, {clipped(files, 100)}, {judged}')}"


def _findings(report: Report) -> Iterator[str]:
    """Each rule's findings, folded away, as far as there is room."""
    room, left_out = _FINDINGS, list[Sequence[Finding]]()
    for group in groups(report.findings):
        if room < _SMALLEST:
            left_out.append(group)
            continue
        text = "\n".join(_group(group, room - _SMALLEST))
        room -= len(text)
        yield text
    if left_out:
        counts = ", ".join(f"{len(group):,} of {markup(group[0].rule, 40)}" for group in left_out[:_LINES])
        more = f" and {len(left_out) - _LINES:,} more rules" if len(left_out) > _LINES else ""
        yield f"\nNo room for all findings: left out are {counts}{more}. The JSON and HTML reports hold them all."


def _group(group: Sequence[Finding], room: int) -> Iterator[str]:
    """One rule's findings; their entries take at most ``room`` characters."""
    first = group[0]
    how_many = f" ({counted(len(group), 'finding')})" if len(group) > 1 else ""
    name = f"<b>{first.severity}</b> {markup(first.rule, 40)} {markup(first.name, 100)}"
    yield f"<details{' open' if first.severity == 'error' else ''}><summary>{name}{how_many}</summary>"
    yield ""
    entries = digest(group)
    lines = list(map(_entry, entries[:_ENTRIES]))
    while lines and sum(map(len, lines)) > room:
        lines.pop()
    yield from lines
    if more := sum(entry.count for entry in entries[len(lines) :]):
        yield f"- {counted(more, 'more finding' if lines else 'finding')} for which there is no room here"
    yield ""
    yield "</details>"


def _entry(entry: Entry) -> str:
    return f"- {names(entry.subjects)}{': ' if entry.subjects else ''}{prose(entry.message)}"


def names(subjects: Iterable[str]) -> str:
    """Names in a line, a family of layers as one."""
    families = fold(subjects)
    shown = [
        code(pattern) + (f" ({len(members):,})" if len(members) > 1 else "") for pattern, members in families[:_NAMES]
    ]
    more = sum(len(members) for _, members in families[_NAMES:])
    return ", ".join([*shown, *([f"{more:,} more"] if more else [])])


def _plan(plan: Plan) -> Iterator[str]:
    """What is to be done, a row for each pass, and how much is left."""
    yield f"**Plan: {counted(len(plan.edits), 'edit')}**"
    passes: dict[tuple[str, Exactness], list[Edit]] = {}
    for edit in plan.edits:
        passes.setdefault((edit.pass_name, edit.exactness), []).append(edit)
    if passes:
        yield ""
        yield "| pass | exactness | edits | for |"
        yield "| --- | --- | ---: | --- |"
    for (name, exactness), edits in passes.items():
        rules = listed(sorted({edit.reason.rule for edit in edits}))
        yield f"| {cell(name)} | {exactness} | {len(edits):,} | {cell(rules)} |"
    yield from _listed(left_lines(plan.left))


def left_lines(left: Sequence[Left]) -> Iterator[str]:
    """What stays, by rule, and the first reason."""
    rules: dict[str, list[Left]] = {}
    for item in sorted(left, key=lambda item: SEVERITIES.index(item.severity)):
        rules.setdefault(item.rule, []).append(item)
    for rule, items in rules.items():
        more = f" ({len(items):,} times)" if len(items) > 1 else ""
        yield f"Left as it is: {prose(rule, 40)}{more}: {prose(items[0].reason, 300)}"


def _convolutions(report: Report) -> Iterator[str]:
    table = convolutions.largest(report)
    if table is None:
        return
    yield f"**Largest convolution weights** ({len(table.rows)} of {table.total:,})"
    yield ""
    yield f"| {f'in {cell(table.prefix)}' if table.prefix else 'tensor'} | {' | '.join(convolutions.HEADER)} |"
    yield "| --- |" + " ---: |" * len(convolutions.HEADER)
    for name, *numbers in table.rows:
        yield f"| {cell(name)} | {' | '.join(numbers)} |"
    yield ""
    yield convolutions.MEANING


def _coverage(report: Report) -> Iterator[str]:
    yield prose(measured(report))
    if report.proof is not None:
        yield f"\nProved safe: {proved(report.proof)}."
        if assumed(report.proof):
            yield f"Assumed: {prose(assumed(report.proof), 2000)}."
    yield from _listed(_not_measured(report))
    yield from _listed(_set_aside(report))
    yield from _listed(f"Remark: {prose(remark, 300)}" for remark in report.remarks)


def _listed(lines: Iterable[str]) -> Iterator[str]:
    """A list, cut where it is long."""
    held = list(lines)
    if held:
        yield ""
    yield from (f"- {line}" for line in held[:_LINES])
    if len(held) > _LINES:
        yield f"- and {len(held) - _LINES:,} more"


def _not_measured(report: Report) -> Iterator[str]:
    for number, reason, tensors in unmeasured(report):
        yield f"**{number}** ({names(tensors)}), {prose(reason, 500)}"


def _set_aside(report: Report) -> Iterator[str]:
    for (by, origin), number in Counter((item.by, item.origin) for item in report.suppressed).items():
        where = f" in {prose(origin, 200)}" if origin else ""
        yield f"Set aside: {counted(number, 'finding')}, by {by}{where}."


def _commands(commands: Sequence[tuple[str, str]]) -> Iterator[str]:
    if not commands:
        return
    yield "Next:"
    yield ""
    for command, why in commands:
        yield f"- {code(command)}: {prose(why)}"
