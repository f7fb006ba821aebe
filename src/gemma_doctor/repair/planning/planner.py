"""Findings to a plan: every finding is either mended by an edit, or left with a reason that a person can judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from gemma_doctor.checkpoint import Checkpoint, FileBytes
from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.errors import UsageError
from gemma_doctor.examination import Examination
from gemma_doctor.plans import Add, Edit, Left, Plan, Rename, SetConfig, SetMetadata
from gemma_doctor.records import Finding
from gemma_doctor.repair.evidence.calibration import Calibration
from gemma_doctor.repair.evidence.case import Answer, Case, Mend, Pass, left
from gemma_doctor.repair.evidence.gains import gain_losses
from gemma_doctor.repair.evidence.losses import losses
from gemma_doctor.repair.fingerprint import fingerprint
from gemma_doctor.repair.planning import registry
from gemma_doctor.repair.planning.merging import merge

__all__ = ["make_plan"]

_LOSSY = "mending it changes the function, which needs --unsafe"


def make_plan(  # noqa: PLR0913  # two nouns, and what the command line says about them
    exam: Examination,
    findings: Sequence[Finding],
    *,
    passes: Sequence[str] = (),
    unsafe: bool = False,
    calibration: Calibration | None = None,
    source: str,
    version: str,
) -> Plan:
    """The plan that mends findings. It reads the tensors that it would edit, and writes nothing.

    Args:
        exam: The examined checkpoint.
        findings: What its rules found, and is to be mended.
        passes: Names of the passes to use. Where none is named, each finding goes to the pass that it names itself,
            or else to the first that knows its rule.
        unsafe: Whether edits that change the function are allowed. They are left out otherwise.
        calibration: What activations measured in a trace.
        source: SOURCE as the user gave it.
        version: Version of gemma-doctor.

    Returns:
        The plan. A finding that no edit mends stands in ``left``; notes that no pass mends stand there once a rule.

    Raises:
        UsageError: If a pass is unknown, two conflict, or a file of the checkpoint cannot be read.
        CheckpointError: If a file changes meanwhile.
    """
    _refuse_broken(exam.checkpoint)
    chosen = registry.select(passes, exam.checkpoint.format)
    shares, unassigned = _assign(findings, chosen, exam.checkpoint.format, named=bool(passes))
    with FileBytes(exam.checkpoint) as files:
        tensors = exam.checkpoint.tensors
        answers = [
            answer
            for one in chosen
            for answer in one.plan(
                Case(
                    exam,
                    tuple(shares[one.name]),
                    lambda name, exponent, dtype: losses(files, tensors[name], exponent, dtype),
                    lambda name, exponent: gain_losses(files, tensors[name], exponent),
                    calibration,
                )
            )
        ]
        mends, stays = _part(answers, unsafe=unsafe)
        merged = merge(mends, exam)
        marks = fingerprint(exam.checkpoint, files, _read(merged.edits))
    rest = (*stays, *merged.left, *unassigned)
    return Plan(
        version=version,
        source=source,
        fingerprint=marks,
        edits=merged.edits,
        left=tuple(_in_order((item for item in rest if item.tensor not in merged.dropped), findings)),
    )


def _refuse_broken(checkpoint: Checkpoint) -> None:
    """A copy of a checkpoint that cannot be read whole would be short of tensors."""
    fault = next((f for f in checkpoint.faults if f.kind in {"unreadable-shard", "unsafe-path"}), None)
    if fault is not None:
        raise UsageError(f"{shown(checkpoint.uri)} cannot be repaired before its files can be read. {fault.message}")
    if checkpoint.unreachable:
        name, why = next(iter(checkpoint.unreachable.items()))
        raise UsageError(
            f"{shown(checkpoint.uri)} cannot be repaired: {len(checkpoint.unreachable):,} tensors cannot be read, the "
            f"first {shown(name)}: {why}"
        )


def _assign(
    findings: Iterable[Finding], chosen: Sequence[Pass], format_: str, *, named: bool
) -> tuple[dict[str, list[Finding]], list[Left]]:
    """Which pass is to mend which finding; and the findings that none is to."""
    shares: dict[str, list[Finding]] = {one.name: [] for one in chosen}
    unassigned: list[Finding] = []
    for finding in findings:
        able = [one.name for one in chosen if finding.rule in one.mends]
        wanted = finding.repair.pass_name if finding.repair is not None else ""
        if able:
            shares[wanted if wanted in able and not named else able[0]].append(finding)
        else:
            unassigned.append(finding)
    return shares, [*_unmendable(unassigned, format_)]


def _unmendable(findings: Sequence[Finding], format_: str) -> Iterator[Left]:
    """The findings that no chosen pass knows: notes once a rule, others each for itself."""
    notes = Counter(finding.rule for finding in findings if finding.severity == "note")
    for finding in findings:
        able = next((one.name for one in registry.select((), format_) if finding.rule in one.mends), None)
        how = (
            f"--pass {able} would mend it" if able else f"no pass mends it; gemma-doctor rule {finding.rule} says more"
        )
        if finding.severity != "note" or notes[finding.rule] == 1:
            yield left(finding, how)
        elif notes[finding.rule]:
            yield Left(finding.rule, "note", None, f"{notes[finding.rule]:,} notes: {how}")
            notes[finding.rule] = 0


def _part(answers: Iterable[Answer], *, unsafe: bool) -> tuple[list[Mend], list[Left]]:
    """The mends that are allowed, and what is left."""
    mends: list[Mend] = []
    stays: list[Left] = []
    for answer in answers:
        if isinstance(answer, Left):
            stays.append(answer)
            continue
        lossy = next((edit for edit in answer.edits if edit.exactness == "lossy"), None)
        if lossy is None or unsafe:
            mends.append(answer)
        else:
            reason = f"{_LOSSY} ({lossy.pass_name}): {lossy.reason.message}"
            found = answer.finding
            stays.append(left(found, reason) if found else Left(lossy.reason.rule, "warning", None, reason))
    return mends, stays


def _read(edits: Iterable[Edit]) -> list[str]:
    """The tensors whose bytes the edits depend on, once each: what is dropped was judged by them as well."""
    names = [edit.tensor for edit in edits if not isinstance(edit, Add | Rename | SetConfig | SetMetadata)]
    return list(dict.fromkeys(names))


def _in_order(stays: Iterable[Left], findings: Sequence[Finding]) -> list[Left]:
    """As the findings are: by rule, then in model order; what no finding says comes last."""
    places: dict[tuple[str, str | None], int] = {}
    rules: dict[str, int] = {}
    for index, finding in enumerate(findings):
        places.setdefault((finding.rule, finding.tensor), index)
        rules.setdefault(finding.rule, index)
    last = len(findings)
    return sorted(stays, key=lambda item: places.get((item.rule, item.tensor), rules.get(item.rule, last)))
