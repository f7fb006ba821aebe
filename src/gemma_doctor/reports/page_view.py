"""What the page says in sections: findings by rule, the passes of a plan, and the command that makes it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from gemma_doctor.choices import LOADERS, MODES, TARGET_DTYPES, Severity
from gemma_doctor.plans import Edit, Plan
from gemma_doctor.records import Exactness, Finding, Repair, Report
from gemma_doctor.reports.digest import Entry, Statement, digest, folded, groups
from gemma_doctor.reports.edits import Line, lines, subject
from gemma_doctor.reports.names import fold
from gemma_doctor.tensors import TensorInfo

__all__ = ["Group", "Item", "Pass", "groups_of", "passes_of", "reproduction"]

_NAMES = 3  # names of an entry that are shown at once
_MORE = 200  # and on demand; the table has all


@dataclass(frozen=True, slots=True)
class Item:
    """Findings that say the same.

    Attributes:
        names: Their subjects, folded, and how many each stands for; the first few.
        more: Further ones, shown on demand.
        left: How many are not even shown then.
        message: What is said.
        count: How many findings they are.
    """

    names: tuple[tuple[str, int], ...]
    more: tuple[tuple[str, int], ...]
    left: int
    message: str
    count: int


@dataclass(frozen=True, slots=True)
class Group:
    """The findings of one rule and severity.

    Attributes:
        rule: Its id.
        name: Its name.
        severity: Their severity.
        count: How many they are.
        tensors: How many concern a tensor that was measured.
        items: What they say, the worst first.
        repairs: The passes that mend them.
        page: The rule's page in Markdown; empty where it is not known.
    """

    rule: str
    name: str
    severity: Severity
    count: int
    tensors: int
    items: tuple[Item, ...]
    repairs: tuple[Repair, ...]
    page: str


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass of a plan does.

    Attributes:
        name: The pass.
        exactness: How exactly it keeps the function.
        lines: Its edits.
        items: Why, the gravest reason first.
    """

    name: str
    exactness: Exactness
    lines: tuple[Line, ...]
    items: tuple[Item, ...]


def groups_of(report: Report, pages: Mapping[str, str]) -> list[Group]:
    """The findings by rule and severity, the gravest first.

    Args:
        report: The report.
        pages: The rules' pages in Markdown, by id.
    """
    measured = {tensor.info.name for tensor in report.tensors}
    return [_group(group, pages, measured) for group in groups(report.findings)]


def passes_of(plan: Plan, tensors: Mapping[str, TensorInfo]) -> list[Pass]:
    """The passes of a plan, in its order.

    Args:
        plan: The plan.
        tensors: The source's tensors, by name.
    """
    together: dict[tuple[str, Exactness], list[Edit]] = {}
    for edit in plan.edits:
        together.setdefault((edit.pass_name, edit.exactness), []).append(edit)
    return [
        Pass(name, exactness, tuple(lines(edits, tensors)), tuple(map(_item, folded(map(_reason, edits)))))
        for (name, exactness), edits in together.items()
    ]


def reproduction(report: Report) -> str:
    """The command that makes the report again, as far as the report tells: it does not hold what was selected."""
    words = ["gemma-doctor", "verify" if report.verification else "scan", report.source.uri]
    if report.source.revision:
        words += ["--revision", report.source.revision]
    if report.target_dtype != TARGET_DTYPES[0]:
        words += ["--target-dtype", report.target_dtype]
    if report.loader != LOADERS[0]:
        words += ["--loader", report.loader]
    if report.verification is not None:
        run = report.verification
        words += ["--mode", run.mode] if run.mode != MODES[0] else []
        words += ["--no-backward"] if not run.backward else []
        words += ["--guard"] if run.guarded else []
        words += [word for glob in run.frozen for word in ("--freeze", glob)]
        words += ["--against", run.against] if run.against else []
    return shlex.join(words)


def _group(findings: Sequence[Finding], pages: Mapping[str, str], measured: AbstractSet[str]) -> Group:
    first = findings[0]
    return Group(
        rule=first.rule,
        name=first.name,
        severity=first.severity,
        count=len(findings),
        tensors=sum(finding.tensor in measured for finding in findings),
        items=tuple(map(_item, digest(findings))),
        repairs=tuple(dict.fromkeys(finding.repair for finding in findings if finding.repair)),
        page=pages.get(first.rule, ""),
    )


def _item(entry: Entry) -> Item:
    families = [(pattern, len(members)) for pattern, members in fold(entry.subjects)]
    shown, more = tuple(families[:_NAMES]), tuple(families[_NAMES : _NAMES + _MORE])
    left = sum(count for _, count in families[_NAMES + _MORE :])
    return Item(shown, more, left, entry.message, entry.count)


def _reason(edit: Edit) -> Statement:
    return Statement(subject(edit), edit.reason.message, edit.reason.evidence)
