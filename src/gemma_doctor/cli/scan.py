"""``gemma-doctor scan``."""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_doctor.cli.frame import OUTPUT, VERDICT, WHAT, Words, option
from gemma_doctor.cli.options import (
    BaselineFile,
    ConfigFile,
    FailOnChoice,
    Ignore,
    Jobs,
    LoaderChoice,
    Quiet,
    Select,
    SourceName,
    TargetChoice,
    Wanted,
    settings_for,
)
from gemma_doctor.cli.running import examine, next_commands
from gemma_doctor.records import FAIL_ON
from gemma_doctor.reports.documents import STDOUT, check_target, draw, write

if TYPE_CHECKING:
    from gemma_doctor.records import Report

__all__ = ["EPILOG", "command"]

EPILOG = """Examples:

\b
  gemma-doctor scan gemma-3n-E2B-it/
  gemma-doctor scan model.safetensors --select GD1 --fail-on warning
  gemma-doctor scan gemma-3n-E2B-it/ --include '*vision_tower*' --json report.json
  gemma-doctor scan model.safetensors --write-baseline known.json
  gemma-doctor scan model.safetensors --baseline known.json --json - | jq .summary

Settings: the command line wins over --config FILE, that over gemma-doctor.toml beside the checkpoint, that over
[tool.gemma-doctor] of the nearest pyproject.toml. Only the first of these files is read.

Exit codes: 0 healthy, 1 findings at or above --fail-on, 2 could not tell. A scan that left a selected
tensor unmeasured, or measured none, exits with 2 whatever it found."""


def command(  # noqa: PLR0913  # typer reads the options from the signature
    source: SourceName,
    *,
    select: Select = None,
    ignore: Ignore = None,
    include: Annotated[Words, option(WHAT, "GLOB", "Measure only tensors of these names. Repeatable.")] = None,
    exclude: Annotated[Words, option(WHAT, "GLOB", "Leave out tensors of these names. Repeatable.")] = None,
    target_dtype: TargetChoice = None,
    loader: LoaderChoice = None,
    fail_on: FailOnChoice = None,
    config: ConfigFile = None,
    baseline: BaselineFile = None,
    write_baseline: Annotated[
        Path | None,
        option(VERDICT, "FILE", "Write the present findings as a baseline. The exit code stays as it is."),
    ] = None,
    json: Annotated[str | None, option(OUTPUT, "PATH", "Write the report as JSON; - is standard output.")] = None,
    quiet: Quiet = False,
    jobs: Jobs = None,
) -> None:
    """Say what is wrong with the weights on disk.

    Every selected tensor is measured to its last element: no torch, no GPU, constant memory.
    """
    check_target(json)
    check_target(write_baseline)
    chosen = settings_for(source, config)
    wanted = Wanted(select, ignore, include, exclude, target_dtype, loader, jobs, baseline)
    report = examine(source, wanted.options(chosen), quiet=quiet)
    from gemma_doctor import doctor, settings

    if write_baseline:
        write(write_baseline, settings.baseline_text(report))
    _show(report, source, json, quiet=quiet)
    raise typer.Exit(doctor.exit_code(report, fail_on or chosen.fail_on or FAIL_ON[0]))


def _show(report: Report, source: str, json: str | None, *, quiet: bool) -> None:
    """Write the report to where it was asked for, and to standard output unless a document goes there."""
    from gemma_doctor.reports import machine, terminal

    if json is not None:
        write(json, machine.to_json(report))
    if json == STDOUT:
        return
    if quiet:
        draw(lambda console: terminal.render_brief(report, console))
    else:
        commands = tuple(next_commands(report, source, numbers=json is None))
        draw(lambda console: terminal.render(report, console, commands))
