"""What a rule is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from gemma_doctor.choices import Severity
from gemma_doctor.records import Fault, FileInfo, Finding, Repair, Scalar
from gemma_doctor.tensors import TensorInfo

__all__ = ["Rule"]


Subject_contra = TypeVar("Subject_contra", contravariant=True)
"""What a rule judges: the examination of a checkpoint, or of a run."""


@dataclass(frozen=True)  # without slots: they do not go with Generic before Python 3.11
class Rule(Generic[Subject_contra]):
    """One rule: its identity and its check. The module's docstring is its page.

    Attributes:
        id: Such as ``"GD101"``; never reused.
        name: Such as ``"nonfinite-weight"``.
        severity: Gravest severity it reports.
        check: Yields the findings, in model order.
    """

    id: str
    name: str
    severity: Severity
    check: Callable[[Subject_contra], Iterator[Finding]]

    def finding(
        self,
        message: str,
        at: TensorInfo | FileInfo | str | None = None,
        *,
        evidence: Mapping[str, Scalar],
        repair: Repair | None = None,
        severity: Severity | None = None,
    ) -> Finding:
        """A finding of this rule.

        Args:
            message: What, how much, against which limit. It follows the tensor's name, so it does not repeat it.
            at: The tensor (its name alone, where no file holds it) or the file concerned; None where it is the
                checkpoint.
            evidence: The numbers with their threshold; never NaN or inf, which JSON lacks.
            repair: The pass that mends it, or None.
            severity: Where it is lighter than the rule's own.
        """
        tensor, file = _place(at)
        return Finding(
            rule=self.id,
            name=self.name,
            severity=severity or self.severity,
            message=message,
            tensor=tensor,
            file=file,
            evidence=evidence,
            repair=repair,
        )

    def from_faults(self, faults: Iterable[Fault]) -> Iterator[Finding]:
        """A finding for each fault that this rule reports (the fault's kind is the rule's name)."""
        for fault in faults:
            if fault.kind == self.name:
                yield Finding(
                    rule=self.id,
                    name=self.name,
                    severity=self.severity,
                    message=fault.message,
                    tensor=fault.tensor,
                    file=fault.file,
                    evidence=fault.evidence,
                )


def _place(at: TensorInfo | FileInfo | str | None) -> tuple[str | None, str | None]:
    """Names of the tensor and the file."""
    match at:
        case TensorInfo():
            return at.name, at.file
        case FileInfo():
            return None, at.name
        case _:
            return at, None
