"""Repair: what a scan has found, planned; a plan, carried out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gemma_doctor.checkpoint import is_repository, open_checkpoint
from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.doctor.examining import looked_into
from gemma_doctor.doctor.fetching import fetched
from gemma_doctor.errors import ChangedError, UsageError
from gemma_doctor.examination import assemble
from gemma_doctor.plans import Applied, Plan
from gemma_doctor.records import Progress, Report
from gemma_doctor.repair.applying.apply import apply
from gemma_doctor.repair.applying.in_place import apply_in_place
from gemma_doctor.repair.evidence.calibration import Calibration
from gemma_doctor.repair.planning.planner import make_plan
from gemma_doctor.version import __version__

__all__ = ["plan", "repair", "repair_in_place"]


def plan(
    report: Report,
    *,
    passes: Sequence[str] = (),
    unsafe: bool = False,
    calibration: Calibration | None = None,
) -> Plan:
    """Plans the repair of what a scan has found.

    Args:
        report: The report of a scan; its findings are to be mended. A Hub repository is downloaded.
        passes: Names of the passes to use; every pass that mends a finding without loss where empty.
        unsafe: Whether edits that change the function are allowed.
        calibration: What a trace measured.

    Returns:
        The plan: pure data, nothing is written. What it leaves alone stands in it with a reason.

    Raises:
        UsageError: If a pass is unknown, passes conflict, or the report does not cover the whole checkpoint.
        ChangedError: If the checkpoint is no longer what was scanned.
    """
    checkpoint = fetched(report.source.uri, report.source.revision)
    _refuse_incomplete(report)
    others = {file.name for file in checkpoint.files if file not in report.source.files}
    if checkpoint.files != report.source.files:
        why = next((f" ({fault.message})" for fault in checkpoint.faults if fault.file in others), "")
        raise ChangedError(f"{report.source.uri} is not what this report describes{why}: scan it again")
    stats = {tensor.info.name: tensor.stats for tensor in report.tensors}
    whole = len(stats) == len(checkpoint.tensors)
    known = assemble(checkpoint, stats, report.target_dtype, report.loader, whole=whole)
    return make_plan(
        looked_into(known),
        report.findings,
        passes=passes,
        unsafe=unsafe,
        calibration=calibration,
        source=checkpoint.pinned,
        version=__version__,
    )


def _refuse_incomplete(report: Report) -> None:
    """What was not measured may be sick, and a plan would pass it over in silence."""
    if report.complete:
        return
    covered = report.coverage
    first = "".join(f": {shown(item.tensor)}, {item.reason}" for item in covered.skipped[:1])
    raise UsageError(
        f"{report.source.uri} cannot be repaired before all of it can be measured; {covered.measured:,} of "
        f"{covered.expected:,} tensors were{first}"
    )


def repair(  # noqa: PLR0913  # two nouns and a place; the rest has defaults and is named
    plan: Plan,
    output: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    link: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Applied:
    """Carries out a plan: writes a mended copy of the plan's source.

    Args:
        plan: What to do.
        output: Folder for the copy; it appears when it is complete and checked.
        source: Where the source lies now; where the plan says if None. Its contents must be those of the plan.
        link: Hard-link tensor files that no edit touches.
        force: Replace an output that is not empty.
        progress: Who is told how far it is.

    Returns:
        What was written.

    Raises:
        UsageError: If the plan does not fit its source, or the output its place.
        ChangedError: If the source is not what the plan was made for.
        OutputError: If the output cannot be written; nothing of it is left.
    """
    checkpoint = fetched(plan.source if source is None else source)
    return apply(plan, checkpoint, Path(output), link=link, force=force, progress=progress)


def repair_in_place(plan: Plan, source: str | os.PathLike[str] | None = None) -> Applied:
    """Carries out a plan in its source: eight bytes of a GGUF file's metadata, after a backup of its header.

    Args:
        plan: What to do.
        source: Where the source lies now; where the plan says if None. Its contents must be those of the plan.

    Returns:
        What was written.

    Raises:
        UsageError: If the plan has other edits, other names lead to the file, or there is a backup already.
        ChangedError: If the source is not what the plan was made for.
        OutputError: If it cannot be written.
    """
    source = plan.source if source is None else source
    if is_repository(source):
        raise UsageError(f"{os.fsdecode(source)}: files of the Hub's cache are not changed in place. Give --output DIR")
    return apply_in_place(plan, open_checkpoint(source))
