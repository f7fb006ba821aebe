"""Scan: open, survey, judge, report."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from gemma_doctor.architectures.ranges import ASSUMPTIONS
from gemma_doctor.catalog import AnyRule
from gemma_doctor.checkpoint import Checkpoint, open_checkpoint
from gemma_doctor.doctor.examining import looked_into
from gemma_doctor.doctor.judging import chosen, counted
from gemma_doctor.doctor.options import Options
from gemma_doctor.errors import UsageError
from gemma_doctor.examination import Examination, assemble
from gemma_doctor.inspect.crew import Crew, hire
from gemma_doctor.inspect.orders import Order, Survey
from gemma_doctor.inspect.registry import RULES
from gemma_doctor.inspect.remarks import remarks
from gemma_doctor.inspect.survey import survey
from gemma_doctor.records import Coverage, Finding, Progress, Proof, Report, Skipped, Source
from gemma_doctor.repair.planning.registry import find_pass
from gemma_doctor.version import __version__

__all__ = ["Case", "judged", "opened", "scan"]


def scan(  # noqa: PLR0913  # a Hub repository is named by three words
    source: str | os.PathLike[str],
    options: Options | None = None,
    progress: Progress | None = None,
    *,
    executor: Executor | Crew | None = None,
    revision: str | None = None,
    token: str | None = None,
    download: bool = False,
) -> Report:
    """Examines a checkpoint: measures every selected tensor once and applies the rules.

    Args:
        source: A safetensors or GGUF file, a checkpoint folder or an index file; or a Hub repository
            ``owner/name``, or a URL, of which only what is measured is fetched.
        options: How to examine; the defaults judge everything for float16.
        progress: Who is told how far it is.
        executor: Measures in place of threads of this process: any of ``concurrent.futures``, which the caller ends.
            It is given four times ``options.jobs`` units ahead. The report is the same.
        revision: Branch, tag or commit of a Hub repository; its default branch if None.
        token: Access token for the Hub; the one of this machine if None.
        download: Whether a Hub repository is downloaded to the Hub's cache first.

    Returns:
        The report. It says itself whether it is complete.

    Raises:
        UsageError: If there is no such source, or nothing in it is selected.
        CheckpointError: If a file cannot be read, or changes meanwhile.
        ClusterError: If the executor or the Dask cluster fails, or does not see the checkpoint as this process does.
        TransferError: If the Hub or another store does not answer, or not as it should.
    """
    options, started = options or Options(), time.perf_counter()
    case = opened(source, options, revision=revision, token=token, download=download)
    with hire(executor, options.dask, options.jobs) as crew:
        measured = survey(case, jobs=options.jobs, crew=crew, progress=progress)
    return judged(case, measured, started)


@dataclass(frozen=True, slots=True)
class Case(Order):
    """A checkpoint that is to be surveyed and judged.

    Attributes:
        options: How it is examined.
        rules: The rules that are applied.
        unreachable: What should be measured and cannot be reached.
    """

    options: Options
    rules: tuple[AnyRule, ...]
    unreachable: tuple[Skipped, ...]


def opened(
    source: str | os.PathLike[str],
    options: Options,
    *,
    revision: str | None = None,
    token: str | None = None,
    download: bool = False,
) -> Case:
    """What is known of a checkpoint before it is measured; the arguments are those of :func:`scan`."""
    rules = chosen(RULES, options)
    checkpoint = open_checkpoint(source, revision=revision, token=token, download=download)
    order = Order.of(checkpoint, (tensor for tensor in checkpoint.tensors.values() if options.chooses(tensor.name)))
    unreachable = tuple(_unreachable(checkpoint, options))
    if not order.asked and not unreachable and (checkpoint.tensors or checkpoint.unreachable):
        raise UsageError(f"no tensor of {checkpoint.uri} is selected; check --include and --exclude")
    return Case(checkpoint, order.wanted, order.skipped, options, rules, unreachable)


def judged(case: Case, measured: Survey, started: float) -> Report:
    """The report on a checkpoint that has been measured.

    Args:
        case: The checkpoint.
        measured: What was measured.
        started: When it began, as ``time.perf_counter`` says it.
    """
    checkpoint, options = case.checkpoint, case.options
    whole = case.asked == len(checkpoint.tensors)
    known = assemble(checkpoint, measured.stats, options.target_dtype, options.loader, whole=whole)
    examination = looked_into(known)
    findings = [_advised(finding, checkpoint) for rule in case.rules for finding in rule.check(examination)]
    parted = counted(findings, case.rules, options, checkpoint)
    skipped = (*measured.skipped, *case.unreachable)
    return Report(
        version=__version__,
        source=Source(
            checkpoint.uri, checkpoint.revision, checkpoint.format, examination.model.family, checkpoint.files
        ),
        target_dtype=options.target_dtype,
        loader=examination.loader,
        coverage=Coverage(case.asked + len(case.unreachable), len(measured.stats), skipped),
        findings=parted.kept,
        suppressed=parted.suppressed,
        remarks=(*parted.remarks, *remarks(examination)),
        proof=_proof(examination),
        tensors=tuple(examination.tensors.values()),
        seconds=time.perf_counter() - started,
    )


def _unreachable(checkpoint: Checkpoint, options: Options) -> Iterator[Skipped]:
    """What should be measured and cannot be reached.

    A file that cannot be read, or is missing, and that no index describes, may hold anything: it counts as one
    tensor called ``*``, whatever is selected.
    """
    yield from (Skipped(name, why) for name, why in checkpoint.unreachable.items() if options.chooses(name))
    for fault in checkpoint.faults:
        missing_shard = "shards" in fault.evidence
        if checkpoint.index is None and (fault.kind == "unreadable-shard" or missing_shard):
            yield Skipped("*", f"whatever {fault.file} holds: {fault.message}")


def _advised(finding: Finding, checkpoint: Checkpoint) -> Finding:
    """The finding, without a repair that the checkpoint's format does not allow."""
    if finding.repair is None or checkpoint.format in find_pass(finding.repair.pass_name).formats:
        return finding
    return replace(finding, repair=None)


def _proof(examination: Examination) -> Proof | None:
    """How many values of a float16 run are proved to fit, if the whole checkpoint was examined for float16."""
    if examination.target_dtype != "float16" or not examination.selected or not examination.model.values:
        return None
    analysis = examination.ranges
    written, scores = analysis.written, analysis.scores
    safe, scores_safe = (sum(item.safe for item in items) for items in (written, scores))
    return Proof(len(written), safe, ASSUMPTIONS, len(scores), scores_safe)
