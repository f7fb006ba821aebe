"""Examinations of checkpoints on disk, and the plans that are made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints import Tensors, write
from examinations import examine

from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.examination import Examination
from gemma_doctor.inspect.registry import RULES
from gemma_doctor.plans import Edit, Left, Plan, SetConfig, SetMetadata
from gemma_doctor.records import Finding
from gemma_doctor.repair.evidence.calibration import Calibration
from gemma_doctor.repair.evidence.case import Answer, Case, Mend
from gemma_doctor.repair.evidence.gains import GainLosses
from gemma_doctor.repair.evidence.losses import Losses
from gemma_doctor.repair.planning.planner import make_plan
from gemma_doctor.repair.planning.registry import find_pass


def admit(folder: Path, tensors: Tensors, config: Mapping[str, Any] | None, *, shards: int = 1) -> Examination:
    """The checkpoint written to a folder and examined; vary the examination with ``dataclasses.replace``."""
    write(folder, tensors, config, shards=shards)
    return replace(examine(tensors, config), checkpoint=open_checkpoint(folder))


def diagnose(exam: Examination, *rules: str) -> list[Finding]:
    """What the rules find; all of them where none is named."""
    return [finding for rule in RULES if not rules or rule.id in rules for finding in rule.check(exam)]


def plan_for(
    exam: Examination,
    *rules: str,
    passes: Sequence[str] = (),
    unsafe: bool = False,
    calibration: Calibration | None = None,
) -> Plan:
    """The plan for what these rules find."""
    findings = diagnose(exam, *rules)
    return make_plan(exam, findings, passes=passes, unsafe=unsafe, calibration=calibration, source="here", version="1")


def answers(
    name: str, exam: Examination, findings: Iterable[Finding] = (), calibration: Calibration | None = None
) -> list[Answer]:
    """What one pass says, of tensors that lose nothing: no file is read."""
    case = Case(exam, tuple(findings), lambda *_: Losses(), lambda *_: GainLosses(0, 0.0, 0.0, 0.0), calibration)
    return list(find_pass(name).plan(case))


def subject(edit: Edit) -> str:
    """The tensor that an edit changes, or the path of a config's value."""
    if isinstance(edit, SetMetadata):
        return edit.key
    return ".".join(edit.path) if isinstance(edit, SetConfig) else edit.tensor


def mended(plan: Plan, finding: Finding) -> bool:
    """Whether some edit says that it is for this finding, or leaves its tensor out."""
    return any(
        (
            (finding.rule == edit.reason.rule or f"{finding.rule}: " in edit.reason.message)
            and (
                finding.tensor in (None, subject(edit), subject(edit).removeprefix("model."))
                or str(finding.tensor) in edit.reason.message
            )
        )
        or (type(edit).__name__ == "Drop" and subject(edit) == finding.tensor)
        for edit in plan.edits
    )


def left_alone(plan: Plan, finding: Finding) -> bool:
    """Whether the plan says why the finding stays."""
    return any(
        item.rule == finding.rule and item.tensor in (None, finding.tensor) and item.reason for item in plan.left
    )


def only_mend(found: list[Answer]) -> Mend:
    """The one answer, a mend."""
    (answer,) = found
    assert isinstance(answer, Mend), answer
    return answer


def only_left(found: list[Answer]) -> Left:
    """The one answer, a refusal."""
    (answer,) = found
    assert isinstance(answer, Left), answer
    return answer
