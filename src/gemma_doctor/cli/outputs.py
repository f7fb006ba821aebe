"""The documents of a report: the options that name them, and one function that writes them all.

A command takes :class:`Outputs` (or, where its ``--json`` is something else, :class:`Documents`) through
:func:`~gemma_doctor.cli.groups.grouped`, calls :meth:`Documents.check` before the work and :func:`write_all` after it.
"""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from gemma_doctor.choices import FailOn
from gemma_doctor.cli.frame import OUTPUT, option
from gemma_doctor.errors import UsageError
from gemma_doctor.reports.documents import STDOUT, append, check_target, draw, on_github, say, write

if TYPE_CHECKING:
    from rich.console import Console

    from gemma_doctor.catalog import AnyRule
    from gemma_doctor.plans import Plan
    from gemma_doctor.records import Finding, Report
    from gemma_doctor.reports.guide import RulePage

__all__ = ["NAME", "Documents", "Outputs", "Telling", "texts", "write_all"]


NAME = "{name}"
"""What stands for a source's short name in the path of a document."""


@dataclass(frozen=True, slots=True)
class Documents:
    """What the command line says of documents that show a report; each is a path, or ``-`` for standard output.

    Attributes:
        html: ``--html``.
        markdown: ``--markdown``.
        sarif: ``--sarif``.
        junit: ``--junit``.
        plot: ``--plot``, which standard output does not take.
    """

    html: Annotated[str | None, option(OUTPUT, "PATH", "Write the report as one HTML file.")] = None
    markdown: Annotated[str | None, option(OUTPUT, "PATH", "Write the report as Markdown, for a pull request.")] = None
    sarif: Annotated[str | None, option(OUTPUT, "PATH", "Write the findings as SARIF, for code scanning.")] = None
    junit: Annotated[str | None, option(OUTPUT, "PATH", "Write a test case for each rule, as JUnit XML.")] = None
    plot: Annotated[str | None, option(OUTPUT, "PATH", "Draw every maximum: .png, .svg or .pdf.")] = None

    @property
    def targets(self) -> dict[str, str]:
        """The given options, by their names on the command line."""
        named = ((f"--{name}", getattr(self, name)) for name in self.__dataclass_fields__)
        return {name: target for name, target in named if target is not None}

    def check(self, **others: str | None) -> None:
        """Refuse documents that could not be written, before the work that they are for.

        Args:
            others: Other documents of the command, by the names of their options (``save_plan``).

        Raises:
            UsageError: If one cannot be written, two would have one target, or a plot has no known format.
        """
        named = {f"--{name.replace('_', '-')}": target for name, target in others.items() if target is not None}
        targets = {**self.targets, **named}
        seen: dict[str, str] = {}
        for name, target in targets.items():
            check_target(target)
            place = target if target == STDOUT else os.path.realpath(target)
            if place in seen:
                where = "to standard output" if target == STDOUT else f"to {target}"
                raise UsageError(f"{seen[place]} and {name} cannot both go {where}")
            seen[place] = name
        if self.plot is not None:
            from gemma_doctor.reports.plots import FORMATS

            if Path(self.plot).suffix.lower() not in FORMATS:
                raise UsageError(f"--plot {self.plot}: name a file that ends in {', '.join(FORMATS)}")

    def taken(self, *others: str | None) -> bool:
        """Whether a document has standard output for itself.

        Args:
            others: Targets of other documents of the command.
        """
        return STDOUT in {*self.targets.values(), *others}


@dataclass(frozen=True, slots=True)
class Outputs(Documents):
    """The same, and the report as JSON.

    Attributes:
        json: ``--json``.
    """

    json: Annotated[str | None, option(OUTPUT, "PATH", "Write the report as JSON; - is standard output.")] = None

    def named(self, name: str) -> Outputs:
        """The same, ``{name}`` in a path replaced by a source's short name."""
        return replace(
            self,
            **{option.removeprefix("--"): target.replace(NAME, name) for option, target in self.targets.items()},
        )


@dataclass(frozen=True, slots=True)
class Telling:
    """What documents say beside the report.

    Attributes:
        source: SOURCE as the user gave it.
        rules: The rules that were applied.
        fail_on: The least severity that fails.
        commands: What to do next: commands that can be copied, and what each is for.
        before: An earlier report to be shown beside it.
        plan: What is to be done to the checkpoint.
        command: The command that made the report; where empty, it is put together from what the report says.
    """

    source: str
    rules: Sequence[AnyRule]
    fail_on: FailOn
    commands: Sequence[tuple[str, str]] = ()
    before: Report | None = None
    plan: Plan | None = None
    command: str = ""

    def pages(self) -> tuple[RulePage, ...]:
        """The rules with their pages."""
        from gemma_doctor import catalog
        from gemma_doctor.reports.guide import RulePage

        return tuple(RulePage(rule.id, rule.name, rule.severity, catalog.page(rule)) for rule in self.rules)


def write_all(
    documents: Documents,
    report: Report,
    telling: Telling,
    picture: Callable[[Console], None] | None = None,
    others: Sequence[str | None] = (),
) -> None:
    """Write every document that was asked for, and tell people and GitHub.

    The step's summary is written where ``GITHUB_STEP_SUMMARY`` names it. What goes to standard output is a document
    and nothing else, or else the picture for people and, in GitHub Actions, annotations.

    Args:
        documents: Where to; checked before.
        report: What to show.
        telling: What documents say beside it.
        picture: What people see on a console; None where the command shows it itself.
        others: Targets of other documents of the command, which may have standard output for themselves.
    """
    for target, text in texts(documents, report, telling):
        write(target, text)
    if documents.plot is not None:
        from gemma_doctor.reports.plots import save_plot

        save_plot(report, Path(documents.plot))
    _summarise(report, telling)
    if not documents.taken(*others):
        if picture is not None:
            draw(picture)
        _annotate(report, telling)


def texts(documents: Documents, report: Report, telling: Telling) -> Iterator[tuple[str, str]]:
    """Each document's target and its text, one after the other: a page of 20,000 tensors need not lie about.

    Args:
        documents: Which ones. A plot is no text.
        report: What they show.
        telling: What they say beside it.
    """
    if isinstance(documents, Outputs) and documents.json is not None:
        from gemma_doctor.reports import machine

        yield documents.json, machine.to_json(report)
    if documents.html is not None:
        from gemma_doctor.reports.page import to_html

        pages = {rule.id: rule.page for rule in telling.pages()}
        date = f"{dt.datetime.now(dt.timezone.utc):%d %B %Y, %H:%M} UTC"
        text = to_html(
            report,
            telling.commands,
            telling.before,
            pages=pages,
            plan=telling.plan,
            command=telling.command,
            date=date,
        )
        yield documents.html, text
    if documents.markdown is not None:
        yield documents.markdown, _markdown(report, telling)
    if documents.sarif is not None:
        from gemma_doctor.cli.anchors import find_anchor
        from gemma_doctor.reports.sarif import to_sarif

        yield documents.sarif, to_sarif(report, find_anchor(telling.source), telling.pages())
    if documents.junit is not None:
        from gemma_doctor.reports.junit import to_junit

        yield documents.junit, to_junit(report, telling.pages(), telling.fail_on)


def _markdown(report: Report, telling: Telling) -> str:
    from gemma_doctor.reports.markdown import to_markdown

    return to_markdown(report, telling.commands, telling.plan)


def _summarise(report: Report, telling: Telling) -> None:
    """Add the Markdown to the summary of a workflow's step; a summary that cannot be written is no failure."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        say(append(Path(summary), _markdown(report, telling)))


def _annotate(report: Report, telling: Telling) -> None:
    """Print the findings as annotations, in a GitHub workflow; of a repair, those that its plan does not mend."""
    if not on_github():
        return
    from gemma_doctor.cli.anchors import find_anchor
    from gemma_doctor.reports.annotations import to_annotations

    said = report if telling.plan is None else replace(report, findings=tuple(_left(report, telling.plan)))
    write(STDOUT, to_annotations(said, find_anchor(telling.source)))


def _left(report: Report, plan: Plan) -> Iterator[Finding]:
    """The findings that a plan leaves; it may speak of several notes of a rule at once."""
    left = {(item.rule, item.tensor) for item in plan.left}
    yield from (found for found in report.findings if {(found.rule, found.tensor), (found.rule, None)} & left)
