"""``gemma-doctor repair``."""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

import os
import shlex
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_doctor.choices import FailOn, failing
from gemma_doctor.cli.frame import OUTPUT, Words, option, words
from gemma_doctor.cli.groups import grouped
from gemma_doctor.cli.options import Quiet, Remote, SourceName, Verdict, Wanted
from gemma_doctor.cli.outlet import Outlet
from gemma_doctor.cli.outputs import Documents, Telling
from gemma_doctor.cli.running import applied, examine, progress
from gemma_doctor.errors import DoctorError, TransferError, UsageError

if TYPE_CHECKING:
    from gemma_doctor.checkpoint import Checkpoint
    from gemma_doctor.doctor import Options
    from gemma_doctor.plans import Applied, Plan
    from gemma_doctor.records import Report

__all__ = ["EPILOG", "command"]

MENDING = "What to mend"

EPILOG = """Examples:

\b
  gemma-doctor repair gemma-3n-E2B-it/ --dry-run
  gemma-doctor repair gemma-3n-E2B-it/ --output mended --html report.html
  gemma-doctor repair gemma-3n-E2B-it/ --output mended --pass rescale-conv
  gemma-doctor repair sick/ --output mended --calibration trace.json
  gemma-doctor repair gemma-3n-E2B-it/ --dry-run --save-plan plan.json
  gemma-doctor repair google/gemma-3n-E2B-it --output mended
  gemma-doctor repair gemma-3n-E2B-it/ --output mended --push me/gemma-3n-fp16
  gemma-doctor repair gemma-3n-E2B-it/ --plan plan.json --output mended --link
  gemma-doctor repair model.gguf --pass gguf-uint32 --in-place

The source is never touched, but by --in-place. The output appears when it is complete and checked, or not at
all; where there is nothing to mend, nothing is written. A Hub repository is downloaded to the Hub's cache first.
`gemma-doctor rule` lists the passes.
HTML, Markdown, SARIF, JUnit and plot show the scan before the repair; HTML and Markdown show the plan as well.

Exit codes: 0 mended, or nothing to mend; 1 findings at or above --fail-on are left, which the plan does not
mend; 2 not repaired: bad usage, unreadable input, anything left unmeasured, or the output cannot be written.
With --dry-run, the code that the repair would have."""


@grouped
def command(  # noqa: PLR0913  # typer reads the options from the signature
    source: SourceName,
    wanted: Wanted,
    verdict: Verdict,
    documents: Documents,
    remote: Remote,
    *,
    output: Annotated[Path | None, option(OUTPUT, "DIR", "Folder for the mended copy: new or empty.")] = None,
    pass_: Annotated[
        Words,
        option(MENDING, "NAME", "Use these passes only. Repeatable. Default: all that lose nothing.", "--pass"),
    ] = None,
    unsafe: Annotated[bool, option(MENDING, None, "Allow edits that change the function (lossy).", "--unsafe")] = False,
    calibration: Annotated[
        Path | None, option(MENDING, "TRACE.json", "Peaks measured in a running model, to scale by.")
    ] = None,
    plan: Annotated[Path | None, option(MENDING, "FILE", "Apply this saved plan as it is; nothing is scanned.")] = None,
    dry_run: Annotated[bool, option(OUTPUT, None, "Print the plan and write no checkpoint.", "--dry-run")] = False,
    save_plan: Annotated[str | None, option(OUTPUT, "FILE", "Write the plan as JSON; - is standard output.")] = None,
    link: Annotated[
        bool, option(OUTPUT, None, "Hard-link tensor files that no edit touches, instead of copying.", "--link")
    ] = False,
    force: Annotated[
        bool, option(OUTPUT, None, "Replace an output (and what --push finds) that is not empty.", "--force")
    ] = False,
    push: Annotated[
        str | None, option(OUTPUT, "OWNER/NAME", "Then send the output to this Hub repository, with its model card.")
    ] = None,
    in_place: Annotated[
        bool, option(OUTPUT, None, "Change a GGUF file's metadata itself, after a backup of its header.", "--in-place")
    ] = False,
    json: Annotated[str | None, option(OUTPUT, "PATH", "Write plan and result as JSON; - is standard output.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write a mended copy; only --in-place touches the source.

    Scans, plans what mends the findings, prints the plan, writes the copy and checks every byte of it.
    """
    outlet = Outlet(documents, json, save_plan, quiet, traced=source if calibration else None)
    outlet.check()
    if plan is not None:
        scanning = {**asdict(wanted), **asdict(documents), "save_plan": save_plan, "calibration": calibration}
        _check_plan_alone(**scanning, **{"pass": pass_})
    _check_passes(words(pass_), unsafe=unsafe)
    _check_in_place(in_place=in_place, output=output, link=link, force=force)
    if push is None:
        remote.check(source)
    else:
        _check_push(push, source, remote, output, dry_run=dry_run or in_place, force=force, quiet=quiet)
    source = remote.fetched(source, quiet=quiet)
    checkpoint = _open(source, output, dry_run=dry_run or in_place, force=force)
    chosen = verdict.settings(source)
    least = verdict.least(chosen)
    if plan is not None:
        what = _saved(plan, unsafe=unsafe)
        outlet.show_plan(what, checkpoint.tensors)
    else:
        options = wanted.options(chosen)
        report, what = _planned(source, options, words(pass_), calibration, unsafe=unsafe, quiet=quiet)
        outlet.show_plan(what, checkpoint.tensors)
        outlet.show_report(report, _telling(source, options, least, what))
    if in_place and what.edits and not dry_run:
        outlet.show_changed(what, _change(what, source), source)
    elif output is None or dry_run or not what.edits:
        outlet.show_unwritten(what, source, save_plan or plan)
    else:
        done = _apply(what, source, output, link=link, force=force, quiet=quiet)
        outlet.show_applied(what, done, output)
        if push is not None:
            outlet.show_pushed(push, _push(what, done, push, source, remote, force=force))
    raise typer.Exit(_exit_code(what, least))


def _telling(source: str, options: Options, least: FailOn, plan: Plan) -> Telling:
    """What documents say beside the report of the scan."""
    from gemma_doctor.inspect.registry import RULES

    return Telling(source, applied(options, RULES), least, plan=plan)


def _check_plan_alone(**scanning: object) -> None:
    """Refuse options that say how to plan, beside a plan that is there already."""
    given = [f"--{name.replace('_', '-')}" for name, value in scanning.items() if value]
    if given:
        raise UsageError(f"--plan applies a plan as it is, and scans nothing: leave out {', '.join(given)}")


def _open(source: str, output: Path | None, *, dry_run: bool, force: bool) -> Checkpoint:
    """The source, once the output is known to have its place: a scan can take long."""
    from gemma_doctor.checkpoint import is_repository, open_checkpoint
    from gemma_doctor.repair.applying.place import check_place

    if output is None and not dry_run:
        raise UsageError("where to? Give --output DIR for the mended copy, or --dry-run to see the plan only")
    checkpoint = open_checkpoint(source, download=is_repository(source))
    if output is not None and not dry_run:
        check_place(checkpoint, Path(os.path.realpath(output)), force=force)
    return checkpoint


def _check_in_place(*, in_place: bool, output: Path | None, link: bool, force: bool) -> None:
    """Refuse ``--in-place`` beside what says where a copy goes."""
    if in_place and (output is not None or link or force):
        raise UsageError("--in-place changes the source and writes no copy: leave out --output, --link and --force")


def _check_push(  # noqa: PLR0913  # what the command line says about the copy
    repo: str, source: str, remote: Remote, output: Path | None, *, dry_run: bool, force: bool, quiet: bool
) -> None:
    """Refuse what cannot be pushed, or not there, before the work."""
    if output is None or dry_run:
        raise UsageError("--push sends the mended copy: give --output DIR, and neither --dry-run nor --in-place")
    remote.hush(quiet=quiet)
    from gemma_doctor import doctor

    doctor.check_push(repo, source, token=remote.token, force=force)


def _push(  # noqa: PLR0913  # what is sent, where from, where to, and how
    plan: Plan, applied: Applied, repo: str, source: str, remote: Remote, *, force: bool
) -> str:
    """Send the output; where that fails, it says that the output is whole, and how to send it later."""
    from gemma_doctor import doctor

    try:
        return doctor.push(plan, applied, repo, source=source, token=remote.token, force=force)
    except DoctorError as error:
        again = shlex.join(("hf", "upload", repo, str(applied.output)))
        raise TransferError(
            f"{error} The mended copy is whole in {applied.output}; push it again with: {again}"
        ) from None


def _change(plan: Plan, source: str) -> Applied:
    """Change the file. Then Ctrl-C ends nothing any more: it is done, and what is left is to say so."""
    from gemma_doctor import doctor

    done = doctor.repair_in_place(plan, source)
    signal.signal(signal.SIGINT, lambda *_: None)
    return done


def _saved(path: Path, *, unsafe: bool) -> Plan:
    """A saved plan; the user consents to what it changes, whoever has written it."""
    from gemma_doctor.repair.documents import read_plan

    plan = read_plan(path)
    lossy = [edit for edit in plan.edits if edit.exactness == "lossy"]
    if lossy and not unsafe:
        raise UsageError(
            f"{path} has {len(lossy):,} edits that change the function, the first by {lossy[0].pass_name}: "
            "add --unsafe to allow them"
        )
    return plan


def _check_passes(passes: tuple[str, ...], *, unsafe: bool) -> None:
    """Refuse passes that are unknown, in conflict, or not allowed, before the scan."""
    from gemma_doctor.repair.planning.registry import select

    lossy = [one.name for one in select(passes) if one.exactness == "lossy"]
    if passes and lossy and not unsafe:
        raise UsageError(f"the pass {lossy[0]} changes the function: add --unsafe to allow it")


def _planned(  # noqa: PLR0913  # what the command line says about a plan
    source: str, options: Options, passes: tuple[str, ...], calibration: Path | None, *, unsafe: bool, quiet: bool
) -> tuple[Report, Plan]:
    """What a scan finds, and the plan for it."""
    from gemma_doctor import doctor
    from gemma_doctor.checkpoint import is_repository
    from gemma_doctor.repair.evidence.calibration import read_calibration

    trace = read_calibration(calibration) if calibration else None
    report = examine(source, options, download=is_repository(source), quiet=quiet)
    return report, doctor.plan(report, passes=passes, unsafe=unsafe, calibration=trace)


def _apply(  # noqa: PLR0913  # what the command line says about the copy
    plan: Plan, source: str, output: Path, *, link: bool, force: bool, quiet: bool
) -> Applied:
    from gemma_doctor import doctor

    with progress("repairing", quiet=quiet) as bar:
        return doctor.repair(plan, output, source=source, link=link, force=force, progress=bar)


def _exit_code(plan: Plan, fail_on: FailOn) -> int:
    """1 where the plan leaves something that is grave enough."""
    return int(any(item.severity in failing(fail_on) for item in plan.left))
