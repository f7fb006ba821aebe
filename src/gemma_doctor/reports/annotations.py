"""Findings as workflow commands of GitHub Actions, which it shows beside the files of a change.

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands. GitHub keeps 10 of each level from
a step (https://github.com/actions/toolkit/blob/main/docs/problem-matchers.md), so a command stands for all findings
that say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gemma_doctor.choices import Severity
from gemma_doctor.records import Report
from gemma_doctor.reports.digest import Entry, digest, groups
from gemma_doctor.reports.guide import Anchor
from gemma_doctor.reports.names import clipped, elide, fold, safe_text
from gemma_doctor.reports.wording import counted, state

__all__ = ["MOST", "to_annotations"]

MOST = 10
"""Annotations of one level that GitHub keeps from a step."""

_COMMANDS: Mapping[Severity, str] = {"error": "error", "warning": "warning", "note": "notice"}


def to_annotations(report: Report, anchor: Anchor | None = None) -> str:
    """The commands, each on a line; then, where there are more findings than GitHub would show, how many.

    Args:
        report: What to say. An incomplete report has a command of its own, before all others.
        anchor: The text file that the annotations are shown beside; none where None.
    """
    return "".join(f"{line}\n" for line in _lines(report, anchor))


def _lines(report: Report, anchor: Anchor | None) -> Iterator[str]:
    if not report.complete:
        yield _command("error", "gemma-doctor", state(report), anchor, 1)
    room = dict.fromkeys(_COMMANDS, MOST)
    room["error"] -= not report.complete
    more = 0
    for group in groups(report.findings):
        first = group[0]
        for entry in digest(group):
            if room[first.severity] > 0:
                room[first.severity] -= 1
                yield _annotation(first.severity, f"{first.rule} {first.name}", entry, anchor)
            else:
                more += entry.count
    if more:
        yield f"and {counted(more, 'more finding')}, which GitHub would not show"


def _annotation(severity: Severity, title: str, entry: Entry, anchor: Anchor | None) -> str:
    line = anchor.line(entry.subjects[0] if entry.subjects else None) if anchor else 1
    return _command(
        _COMMANDS[severity], clipped(title, 200), f"{_subjects(entry)}{clipped(entry.message)}", anchor, line
    )


def _subjects(entry: Entry) -> str:
    """The names, a family of layers as one."""
    families = fold(entry.subjects)
    if not families:
        return ""
    pattern, members = families[0]
    more = len(entry.subjects) - len(members)
    many = f" ({len(members):,})" if len(members) > 1 else ""
    return f"{elide(safe_text(pattern))}{many}{f' and {more:,} more' if more else ''}: "


def _command(name: str, title: str, message: str, anchor: Anchor | None, line: int) -> str:
    place = f"file={_property(anchor.path)},line={line}," if anchor else ""
    return f"::{name} {place}title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    """A command's message (actions/toolkit, packages/core/src/command.ts: escapeData)."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """A command's parameter (the same: escapeProperty)."""
    return _data(safe_text(text)).replace(":", "%3A").replace(",", "%2C")
