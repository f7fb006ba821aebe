"""Long work with a progress bar where somebody can see it, and the commands that follow it."""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from gemma_doctor.choices import MODES

if TYPE_CHECKING:
    from gemma_doctor.catalog import AnyRule
    from gemma_doctor.cli.options import Remote
    from gemma_doctor.doctor import Options, Progress
    from gemma_doctor.records import Report
    from gemma_doctor.verifications import Verification

__all__ = ["MENDED", "after_run", "applied", "examine", "given", "next_commands", "progress", "spelled", "steps"]

MENDED = "mended"
"""What examples call the output of a repair."""

_TRACE = "trace.json"
"""What they call a trace."""


def examine(
    source: str, options: Options, remote: Remote | None = None, *, download: bool = False, quiet: bool
) -> Report:
    """The report of a scan.

    Args:
        source: SOURCE as the user gave it.
        options: How to examine.
        remote: What the command line says of a Hub repository.
        download: Whether it is downloaded first.
        quiet: Whether to show no progress.
    """
    from gemma_doctor import doctor

    revision, token = (None, None) if remote is None else (remote.revision, remote.token)
    with progress("scanning", quiet=quiet) as bar:
        return doctor.scan(source, options, bar, revision=revision, token=token, download=download)


def applied(options: Options, known: Sequence[AnyRule]) -> tuple[AnyRule, ...]:
    """The rules that an examination applies.

    Args:
        options: How it was asked for.
        known: The rules of its kind: those of a scan, or those of a verification.
    """
    from gemma_doctor import catalog

    return tuple(rule for rule in catalog.select(options.select, options.ignore) if rule in known)


def progress(doing: str, *, quiet: bool) -> AbstractContextManager[Progress | None]:
    """A progress bar where somebody can see it."""
    if quiet or not sys.stderr.isatty():
        return nullcontext()
    from gemma_doctor.reports.progress import bar
    from gemma_doctor.reports.sheet import console_for

    return bar(console_for(sys.stderr), doing)


@contextmanager
def steps(doing: str, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Which step long work is at, where somebody can see it; what it yields is told each step."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from gemma_doctor.reports.progress import steps as shown
    from gemma_doctor.reports.sheet import console_for

    with shown(console_for(sys.stderr), doing) as tell:
        yield tell


def given(options: Any) -> Iterator[str]:  # noqa: ANN401  # a dataclass of options
    """The options that are not the default, as words of a command line."""
    for one in fields(options):
        value = getattr(options, one.name)
        for part in value if isinstance(value, list) else [value]:
            if part != one.default:
                yield f"--{one.name.replace('_', '-')}"
                yield from () if part is True else (str(part),)


def spelled(*words: str) -> str:
    """A command of this program, quoted for the shell."""
    return shlex.join(("gemma-doctor", *words))


def after_run(
    report: Report, source: str, tracing: Sequence[str], again: Sequence[str], trace: str | None = None
) -> Iterator[tuple[str, str]]:
    """What to do after a verification that found something, and what each command is for.

    Args:
        report: The report.
        source: SOURCE as the user gave it.
        tracing: Options that give the model the same inputs, to trace them.
        again: Options that run a mended copy as this one was run.
        trace: Where the trace is, if it has been written.
    """
    yield spelled("rule", report.findings[0].rule), "what it means and how to mend it"
    mends = dict.fromkeys(finding.repair.pass_name for finding in report.findings if finding.repair)
    if not mends:
        return
    if trace is None:
        yield (
            spelled("verify", source, *tracing, "--no-backward", "--trace", _TRACE),
            "measure what the repair is to fit",
        )
    calibration = ("--calibration", trace or _TRACE)
    yield spelled("repair", source, "--output", MENDED, *calibration), f"mend it ({', '.join(mends)})"
    yield spelled("verify", MENDED, *again, "--against", source), "see that it is mended"


def _told(verification: Verification) -> tuple[list[str], list[str]]:
    """The options of a saved verification, as far as it tells: to trace the same, and to run the same again."""
    inputs = [word for run in verification.runs for word in ("--modality", run.modality)]
    manner = [] if verification.mode == MODES[0] else ["--mode", verification.mode]
    manner += [] if verification.backward else ["--no-backward"]
    manner += [word for glob in verification.frozen for word in ("--freeze", glob)]
    return inputs, [*inputs, *manner]


def next_commands(report: Report, source: str, *, numbers: bool = True) -> Iterator[tuple[str, str]]:
    """What to do after a scan, or a saved verification, that found something, and what each command is for.

    Args:
        report: The report.
        source: SOURCE as the user gave it.
        numbers: Whether to tell how to get every number.
    """
    from gemma_doctor.reports.digest import groups

    if not report.findings:
        return
    if report.verification is not None:
        yield from after_run(report, source, *_told(report.verification))
        return
    yield spelled("rule", groups(report.findings)[0][0].rule), "what it means and how to mend it"
    repairs = [finding.repair.exactness for finding in report.findings if finding.repair]
    if any(exactness != "lossy" for exactness in repairs):
        yield spelled("repair", source, "--output", MENDED), "write a mended copy"
    elif repairs:
        yield spelled("repair", source, "--output", MENDED, "--unsafe"), "at a price: it changes the function"
    if numbers and report.tensors:
        yield spelled("scan", source, "--json", "report.json"), "every number"
