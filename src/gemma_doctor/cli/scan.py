"""``gemma-doctor scan``."""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_doctor.cli.frame import RUNNING, VERDICT, option
from gemma_doctor.cli.groups import grouped
from gemma_doctor.cli.options import Quiet, Remote, ScanWanted, SourceNames, Verdict
from gemma_doctor.cli.outputs import Outputs, Telling, write_all
from gemma_doctor.cli.running import applied, examine, next_commands
from gemma_doctor.cli.several import Round, short_names
from gemma_doctor.errors import UsageError
from gemma_doctor.reports.documents import check_target, write

if TYPE_CHECKING:
    from gemma_doctor.records import Report

__all__ = ["EPILOG", "command"]

EPILOG = """Examples:

\b
  gemma-doctor scan gemma-3n-E2B-it/
  gemma-doctor scan model.safetensors --select GD1 --fail-on warning
  gemma-doctor scan gemma-3n-E2B-it/ --include '*vision*' --json report.json
  gemma-doctor scan gemma-3n-E2B-it/ --html report.html --plot weights.svg
  gemma-doctor scan model.safetensors --write-baseline known.json
  gemma-doctor scan model.safetensors --baseline known.json --fail-on note
  gemma-doctor scan model.safetensors --json - | jq .summary
  gemma-doctor scan models/*/ --quiet --html 'report-{name}.html'
  gemma-doctor scan /mnt/models/*/ --dask tcp://scheduler:8786
  gemma-doctor scan google/gemma-3n-E2B-it --include '*vision_tower*'
  gemma-doctor scan google/gemma-3n-E2B-it --revision main --download
  gemma-doctor scan s3://bucket/gemma-3n-E2B-it

A path of this machine wins over a Hub repository. Of a repository or a URL only the headers and the tensors that are
measured are fetched, and nothing is written to disk unless --download is given; what the Hub's cache has is read from
there. HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to hf. Stores other than http(s) need
pip install 'gemma-doctor[remote]'.

\b
Settings: the command line wins over --config FILE, that over
gemma-doctor.toml beside the checkpoint, that over [tool.gemma-doctor] of
the nearest pyproject.toml. Only the first of these files is read.

Several SOURCES: a report for each, then a table; one that cannot be read does not stop the others. A path with
{name} in it is written for each source. Without, --json is a list of reports, --sarif a log of several runs,
--junit a document of several suites; --html and --plot need {name}. The exit code is the worst.

--dask needs pip install 'gemma-doctor[dask]' here and the same gemma-doctor on every worker, and each worker
must see the files under the path that they have here. Docs: docs/scale.md.

In a GitHub workflow the findings are also annotations, and the step's summary holds the report.

Exit codes: 0 healthy, 1 findings at or above --fail-on, 2 could not tell. A scan that left a selected
tensor unmeasured, or measured none, exits with 2 whatever it found."""


@grouped
def command(  # noqa: PLR0913  # typer reads the options from the signature
    sources: SourceNames,
    wanted: ScanWanted,
    verdict: Verdict,
    outputs: Outputs,
    remote: Remote,
    *,
    write_baseline: Annotated[
        Path | None,
        option(VERDICT, "FILE", "Write the present findings as a baseline. The exit code stays as it is."),
    ] = None,
    download: Annotated[
        bool, option(RUNNING, None, "Download a Hub repository to the Hub's cache first.", "--download")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Say what is wrong with the weights on disk.

    Every selected tensor is measured to its last element: no torch, no GPU, constant memory.
    """
    outputs.check()
    check_target(write_baseline)
    if len(sources) > 1:
        _refuse_baseline(write_baseline)
        if remote != Remote() or download:
            raise UsageError("--revision, --token and --download are for one SOURCE; several take owner/name@revision")
        several = Round(sources, wanted, verdict, outputs, quiet)
        several.check()
        raise typer.Exit(several.run())
    (source,) = sources
    outputs = outputs.named(short_names(sources)[0])
    chosen = verdict.settings(source)
    options = wanted.options(chosen)
    report = examine(source, options, remote, download=download, quiet=quiet)
    from gemma_doctor import doctor, settings
    from gemma_doctor.inspect.registry import RULES

    if write_baseline:
        write(write_baseline, settings.baseline_text(report))
    least = verdict.least(chosen)
    source = remote.named(source)
    commands = tuple(next_commands(report, source, numbers=outputs.json is None))
    _show(report, outputs, Telling(source, applied(options, RULES), least, commands), quiet=quiet)
    raise typer.Exit(doctor.exit_code(report, least))


def _refuse_baseline(target: Path | None) -> None:
    """A baseline is of one checkpoint.

    Raises:
        UsageError: If one is to be written.
    """
    if target is not None:
        raise UsageError("--write-baseline is of one SOURCE: scan them one by one")


def _show(report: Report, outputs: Outputs, telling: Telling, *, quiet: bool) -> None:
    """Write the report to where it was asked for, and to standard output unless a document goes there."""
    from gemma_doctor.reports import terminal

    if quiet:
        write_all(outputs, report, telling, lambda console: terminal.render_brief(report, console))
    else:
        write_all(outputs, report, telling, lambda console: terminal.render(report, console, telling.commands))
