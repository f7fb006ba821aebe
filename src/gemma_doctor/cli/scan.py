"""``gemma-doctor scan``."""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_doctor.cli.frame import VERDICT, option
from gemma_doctor.cli.groups import grouped
from gemma_doctor.cli.options import Quiet, ScanWanted, SourceName, Verdict
from gemma_doctor.cli.outputs import Outputs, Telling, write_all
from gemma_doctor.cli.running import applied, examine, next_commands
from gemma_doctor.reports.documents import check_target, write

if TYPE_CHECKING:
    from gemma_doctor.records import Report

__all__ = ["EPILOG", "command"]

EPILOG = """Examples:

\b
  gemma-doctor scan gemma-3n-E2B-it/
  gemma-doctor scan model.safetensors --select GD1 --fail-on warning
  gemma-doctor scan gemma-3n-E2B-it/ --include '*vision_tower*' --json report.json
  gemma-doctor scan gemma-3n-E2B-it/ --html report.html --plot weights.svg --quiet
  gemma-doctor scan model.safetensors --write-baseline known.json
  gemma-doctor scan model.safetensors --baseline known.json --json - | jq .summary

Settings: the command line wins over --config FILE, that over gemma-doctor.toml beside the checkpoint, that over
[tool.gemma-doctor] of the nearest pyproject.toml. Only the first of these files is read.

In a GitHub workflow the findings are also annotations, and the step's summary holds the report.

Exit codes: 0 healthy, 1 findings at or above --fail-on, 2 could not tell. A scan that left a selected
tensor unmeasured, or measured none, exits with 2 whatever it found."""


@grouped
def command(  # noqa: PLR0913  # typer reads the options from the signature
    source: SourceName,
    wanted: ScanWanted,
    verdict: Verdict,
    outputs: Outputs,
    *,
    write_baseline: Annotated[
        Path | None,
        option(VERDICT, "FILE", "Write the present findings as a baseline. The exit code stays as it is."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Say what is wrong with the weights on disk.

    Every selected tensor is measured to its last element: no torch, no GPU, constant memory.
    """
    outputs.check()
    check_target(write_baseline)
    chosen = verdict.settings(source)
    options = wanted.options(chosen)
    report = examine(source, options, quiet=quiet)
    from gemma_doctor import doctor, settings
    from gemma_doctor.inspect.registry import RULES

    if write_baseline:
        write(write_baseline, settings.baseline_text(report))
    least = verdict.least(chosen)
    commands = tuple(next_commands(report, source, numbers=outputs.json is None))
    _show(report, outputs, Telling(source, applied(options, RULES), least, commands), quiet=quiet)
    raise typer.Exit(doctor.exit_code(report, least))


def _show(report: Report, outputs: Outputs, telling: Telling, *, quiet: bool) -> None:
    """Write the report to where it was asked for, and to standard output unless a document goes there."""
    from gemma_doctor.reports import terminal

    if quiet:
        write_all(outputs, report, telling, lambda console: terminal.render_brief(report, console))
    else:
        write_all(outputs, report, telling, lambda console: terminal.render(report, console, telling.commands))
