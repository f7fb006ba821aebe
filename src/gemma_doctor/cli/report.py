"""``gemma-doctor report``."""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_doctor.choices import FAIL_ON, FailOn
from gemma_doctor.cli.frame import VERDICT, choice
from gemma_doctor.cli.groups import grouped
from gemma_doctor.cli.options import Quiet
from gemma_doctor.cli.outputs import Outputs, Telling, write_all
from gemma_doctor.cli.running import next_commands
from gemma_doctor.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from gemma_doctor.records import Report

__all__ = ["EPILOG", "command"]

EPILOG = """Examples:

\b
  gemma-doctor report report.json
  gemma-doctor report report.json --html report.html --plot weights.svg
  gemma-doctor report before.json after.json --html change.html

A report is what --json writes. Of two, the first is the earlier; the second is the one that counts.

Exit codes: 0 healthy, 1 findings at or above --fail-on, 2 could not tell."""


@grouped
def command(
    reports: Annotated[
        list[Path], typer.Argument(metavar="REPORT.json", help="A saved report, or two: before and after.")
    ],
    fail_on: Annotated[FailOn, choice(VERDICT, FAIL_ON, "Exit with 1 from this severity up.")] = FAIL_ON[0],
    *,
    outputs: Outputs,
    quiet: Quiet = False,
) -> None:
    """Render a saved report again; of two, what lies between them."""
    outputs.check()
    if len(reports) > 2:  # noqa: PLR2004  # before and after
        raise UsageError(f"{len(reports)} reports are given: one is shown, two are compared")
    *earlier, report = map(_read, reports)
    before = earlier[0] if earlier else None
    from gemma_doctor import catalog, doctor
    from gemma_doctor.inspect import registry

    rules = catalog.RULES if report.verification else registry.RULES
    commands = tuple(next_commands(report, report.source.uri, numbers=False))
    telling = Telling(report.source.uri, rules, fail_on, commands, before)
    write_all(outputs, report, telling, _picture(report, telling, quiet=quiet))
    raise typer.Exit(doctor.exit_code(report, fail_on))


def _read(path: Path) -> Report:
    from gemma_doctor.checkpoint.alike import alike
    from gemma_doctor.reports.machine import from_json

    try:
        return from_json(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}{alike(str(path))}") from error


def _picture(report: Report, telling: Telling, *, quiet: bool) -> Callable[[Console], None]:
    """What people see at a terminal: one report, or the difference."""
    from gemma_doctor.reports import comparison_terminal, terminal
    from gemma_doctor.reports.comparison import compare

    if telling.before is None:
        if quiet:
            return partial(terminal.render_brief, report)
        return partial(terminal.render, report, commands=telling.commands)
    compared = compare(telling.before, report)
    if quiet:
        return partial(comparison_terminal.render_brief, compared)
    return partial(comparison_terminal.render, compared, commands=telling.commands)
