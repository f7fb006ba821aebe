"""What a pass is, what it is given and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from gemma_doctor.examination import Examination
from gemma_doctor.plans import Edit, Left
from gemma_doctor.records import Exactness, Finding
from gemma_doctor.repair.evidence.calibration import Calibration
from gemma_doctor.repair.evidence.gains import GainLosses
from gemma_doctor.repair.evidence.losses import Losses

__all__ = ["Answer", "Case", "Mend", "Pass", "left"]


@dataclass(frozen=True, slots=True)
class Case:
    """What a pass may look at.

    Attributes:
        exam: The examined checkpoint.
        findings: The findings that the pass is to mend, all of them of rules that it mends.
        losses: What storing a tensor (by its name on disk) times 2**exponent in a dtype would lose. It reads the
            tensor, so passes ask for the tensors that they want to edit, and no others.
        gains: What scaling a gain by 2**exponent, one that one is added to, would lose. It reads the tensor as well.
        calibration: What the activations measured in a trace; None where there is none.
    """

    exam: Examination
    findings: tuple[Finding, ...]
    losses: Callable[[str, int, str], Losses]
    gains: Callable[[str, int], GainLosses]
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class Mend:
    """The edits that mend one finding, all of them together or none.

    Attributes:
        finding: The finding; None where a calibration showed what no rule found.
        edits: At least one.
    """

    finding: Finding | None
    edits: tuple[Edit, ...]


Answer: TypeAlias = Mend | Left


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: its identity and its plan. The module's docstring is its page.

    Attributes:
        name: Such as ``"rescale-conv"``.
        exactness: The worst that its edits are.
        mends: Ids of the rules whose findings it mends.
        plan: Answers every finding of the case, with a mend or with the reason why it is left.
        conflicts: Names of passes that mend the same tensors another way, so that only one of them can be asked for.
        formats: Formats of the checkpoints that it can edit.
    """

    name: str
    exactness: Exactness
    mends: tuple[str, ...]
    plan: Callable[[Case], Iterator[Answer]]
    conflicts: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("safetensors",)


def left(finding: Finding, reason: str) -> Left:
    """The finding as one that stays."""
    return Left(finding.rule, finding.severity, finding.tensor, reason)
