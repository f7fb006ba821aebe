"""Two reports of one checkpoint: what is gone, what is new, what changed."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gemma_doctor.choices import SEVERITIES
from gemma_doctor.records import Finding, Report
from gemma_doctor.reports.figures import figures, rows
from gemma_doctor.tensors import MeasuredTensor
from gemma_doctor.verifications import Verification

__all__ = ["Changed", "Comparison", "Kept", "compare"]


@dataclass(frozen=True, slots=True)
class Kept:
    """A finding that both reports have.

    Attributes:
        before: As it was.
        after: As it is.
    """

    before: Finding
    after: Finding

    @property
    def graver(self) -> bool:
        """Whether its severity has risen."""
        return SEVERITIES.index(self.after.severity) < SEVERITIES.index(self.before.severity)

    @property
    def lighter(self) -> bool:
        """Whether its severity has fallen."""
        return SEVERITIES.index(self.after.severity) > SEVERITIES.index(self.before.severity)


@dataclass(frozen=True, slots=True)
class Changed:
    """A tensor of both reports whose dtype, shape or figures differ.

    Attributes:
        before: As it was.
        after: As it is.
    """

    before: MeasuredTensor
    after: MeasuredTensor


@dataclass(frozen=True, slots=True)
class Comparison:
    """What lies between two reports.

    Attributes:
        before: The earlier report.
        after: The later report.
        gone: Findings that the later one lacks, in the earlier one's order.
        new: Findings that the earlier one lacks, in the later one's order.
        kept: Findings of both, in the later one's order.
        changed: Tensors of both whose dtype, shape or figures differ, in the later one's order.
        added: Tensors that only the later one measured.
        removed: Tensors that only the earlier one measured.
    """

    before: Report
    after: Report
    gone: tuple[Finding, ...]
    new: tuple[Finding, ...]
    kept: tuple[Kept, ...]
    changed: tuple[Changed, ...]
    added: tuple[MeasuredTensor, ...]
    removed: tuple[MeasuredTensor, ...]

    @property
    def verifications(self) -> tuple[Verification | None, Verification | None]:
        """What running the model showed, before and after; None where it was not run."""
        return self.before.verification, self.after.verification

    @property
    def remarks(self) -> tuple[str, ...]:
        """Why the two can be compared only in part, a sentence each."""
        return tuple(_remarks(self))


def compare(before: Report, after: Report) -> Comparison:
    """What lies between two reports.

    Findings are the same where rule and tensor are (rule and file, where no tensor is concerned); one that occurs
    several times is matched as often. Tensors are the same by name. Equal figures do not prove equal bytes.

    Args:
        before: The earlier report.
        after: The later report.
    """
    gone, new, kept = _matched(before.findings, after.findings)
    old = {tensor.info.name: tensor for tensor in before.tensors}
    now = {tensor.info.name: tensor for tensor in after.tensors}
    both = (Changed(old[name], tensor) for name, tensor in now.items() if name in old)
    return Comparison(
        before=before,
        after=after,
        gone=gone,
        new=new,
        kept=kept,
        changed=tuple(pair for pair in both if _figures(pair.before) != _figures(pair.after)),
        added=tuple(tensor for name, tensor in now.items() if name not in old),
        removed=tuple(tensor for name, tensor in old.items() if name not in now),
    )


def _matched(
    before: Sequence[Finding], after: Sequence[Finding]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...], tuple[Kept, ...]]:
    """Gone, new and kept findings: a multiset difference by rule and subject."""
    waiting: dict[tuple[str, str | None], deque[int]] = defaultdict(deque)
    for place, finding in enumerate(before):
        waiting[_key(finding)].append(place)
    new, kept = [], []
    for finding in after:
        known = waiting.get(_key(finding))
        if known:
            kept.append(Kept(before[known.popleft()], finding))
        else:
            new.append(finding)
    gone = sorted(place for places in waiting.values() for place in places)
    return tuple(before[place] for place in gone), tuple(new), tuple(kept)


def _key(finding: Finding) -> tuple[str, str | None]:
    return finding.rule, finding.tensor or finding.file


def _figures(tensor: MeasuredTensor) -> tuple[object, ...]:
    """What a saved report holds of a tensor's contents; sums beyond float64 are None there."""
    return tensor.info.dtype, tensor.info.shape, figures(tensor.stats), rows(tensor.stats)


def _remarks(comparison: Comparison) -> Iterator[str]:
    before, after = comparison.before, comparison.after
    judged = [f"{report.target_dtype} and {report.loader}" for report in (before, after)]
    if judged[0] != judged[1]:
        yield f"They are judged differently: before for {judged[0]}, after for {judged[1]}."
    for when, report in (("before", before), ("after", after)):
        if not report.complete:
            yield (
                f"The report {when} is incomplete: {report.coverage.measured:,} of {report.coverage.expected:,} "
                "tensors were measured."
            )
    measured = {tensor.info.name for tensor in after.tensors}
    unseen = sum(finding.tensor is not None and finding.tensor not in measured for finding in comparison.gone)
    if unseen:
        yield (
            f"{unseen:,} of the findings that are gone concern tensors that the later report does not hold: "
            "removed, renamed or not measured."
        )
