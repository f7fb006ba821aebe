"""``gemma-doctor scan A B C``: one report for each source, and a summary.

A document's path with ``{name}`` in it is written once for each source; without, one document holds them all.
"""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_doctor.cli.options import ScanWanted, Verdict
from gemma_doctor.cli.outputs import NAME, Outputs, Telling, texts, write_all
from gemma_doctor.cli.running import applied, next_commands, progress
from gemma_doctor.errors import UsageError
from gemma_doctor.reports.documents import draw, say, write

if TYPE_CHECKING:
    from rich.console import Console

    from gemma_doctor.choices import FailOn
    from gemma_doctor.doctor import Options, Outcome
    from gemma_doctor.records import Report
    from gemma_doctor.reports.several import Row

__all__ = ["Round", "short_names"]

_JOINED = ("json", "markdown", "sarif", "junit")  # what can hold several sources


@dataclass(slots=True)
class Round:
    """A scan of several sources, reported in their order.

    Attributes:
        sources: The sources, as the user gave them.
        wanted: What to examine.
        verdict: What counts.
        outputs: Where reports go.
        quiet: Whether to say little.
    """

    sources: Sequence[str]
    wanted: ScanWanted
    verdict: Verdict
    outputs: Outputs
    quiet: bool
    _held: dict[str, list[str]] = field(default_factory=dict)
    _rows: list[Row] = field(default_factory=list)
    _chosen: dict[int, tuple[Options, FailOn]] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse, before the work, documents that hold one source and no more.

        Raises:
            UsageError: If there is one.
        """
        for option, target in self.outputs.targets.items():
            if NAME not in target and option.removeprefix("--") not in _JOINED:
                raise UsageError(
                    f"{option} {target}: one file cannot show {len(self.sources)} sources; put {NAME} in its name"
                )

    def run(self) -> int:
        """Scan all of them, whatever becomes of one; the worst of their exit codes."""
        from gemma_doctor import doctor
        from gemma_doctor.inspect.crew import hire
        from gemma_doctor.reports.several import JOINERS, render_summary

        names = short_names(self.sources)
        watch = lambda number: progress(  # noqa: E731
            f"scanning {names[number]} ({number + 1} of {len(names)})", quiet=self.quiet
        )
        todo = doctor.Round(self.sources, self._options, watch)
        with hire(None, self.wanted.dask) as crew, closing(todo.outcomes(crew)) as outcomes:
            codes = [self._take(number, names[number], outcome) for number, outcome in enumerate(outcomes)]
        for kind, documents in self._held.items():
            write(getattr(self.outputs, kind), JOINERS[kind](documents, names))
        if not self.outputs.taken():
            draw(lambda console: render_summary(self._rows, console))
        return max(codes)

    def _options(self, number: int) -> Options:
        """How a source is examined; kept, with what fails it, for its report."""
        chosen = self.verdict.settings(self.sources[number])
        options = replace(self.wanted.options(chosen), dask=None)
        self._chosen[number] = options, self.verdict.least(chosen)
        return options

    def _take(self, number: int, name: str, outcome: Outcome) -> int:
        """Show the report on one source, or that it could not be examined; its exit code."""
        from gemma_doctor import doctor
        from gemma_doctor.inspect.registry import RULES
        from gemma_doctor.records import Report
        from gemma_doctor.reports.several import Row

        source = self.sources[number]
        options, least = self._chosen.get(number) or (doctor.Options(), self.verdict.fail_on or "error")
        report = outcome if isinstance(outcome, Report) else doctor.unread(source, options, _told(source, outcome))
        commands = tuple(next_commands(report, source, numbers=self.outputs.json is None))
        telling = Telling(source, applied(options, RULES), least, commands)
        self._show(report, name, telling)
        self._rows.append(Row.of(source, report))
        return doctor.exit_code(report, least)

    def _show(self, report: Report, name: str, telling: Telling) -> None:
        """Write what belongs to one source, and keep what goes into a document with the others."""
        own = {kind: target for kind, target in _kinds(self.outputs).items() if NAME in target}
        joined = Outputs(**{kind: kind for kind in _kinds(self.outputs) if kind not in own})
        for kind, text in texts(joined, report, telling):
            self._held.setdefault(kind, []).append(text)
        alone = Outputs(**own).named(name)
        write_all(alone, report, telling, self._picture(report, telling), tuple(self.outputs.targets.values()))

    def _picture(self, report: Report, telling: Telling) -> Callable[[Console], None]:
        """What people see of one source."""

        def draw_one(console: Console) -> None:
            from gemma_doctor.reports import terminal
            from gemma_doctor.reports.sheet import Sheet

            sheet = Sheet.on(console)
            if self._rows:
                sheet.blank()
            sheet.paragraph((f"== {telling.source}", "bold"))
            if self.quiet:
                terminal.render_brief(report, console)
            else:
                terminal.render(report, console, telling.commands)

        return draw_one


def _told(source: str, error: Exception) -> str:
    """The error's message, which is also said."""
    message = str(error)
    say(f"gemma-doctor: {message}" if message.startswith(source) else f"gemma-doctor: {source}: {message}")
    return message


def short_names(sources: Sequence[str]) -> list[str]:
    """A name for each source that a file's name can hold: its last part, and a number where that is taken."""
    from gemma_doctor.checkpoint.quoting import without_secrets

    names: list[str] = []
    for source in sources:
        last = Path(os.path.realpath(without_secrets(source))).name
        stem = last.removesuffix(".safetensors").removesuffix(".gguf") or "root"
        names.append(next(name for name in chain([stem], (f"{stem}-{n}" for n in count(2))) if name not in names))
    return names


def _kinds(outputs: Outputs) -> dict[str, str]:
    """The given targets by kind of document."""
    return {option.removeprefix("--"): target for option, target in outputs.targets.items()}
