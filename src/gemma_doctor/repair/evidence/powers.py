"""The edit that multiplies one tensor by a power of two: what it may cost, and what it says of that."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from gemma_doctor.plans import Reason, Scale, ScaleGain
from gemma_doctor.records import Exactness, Scalar
from gemma_doctor.repair.evidence.case import Case
from gemma_doctor.repair.evidence.losses import Losses
from gemma_doctor.repair.evidence.scaling import Note, RefusedError, refuse_coarse, scalable
from gemma_doctor.tensors import FP16_MAX, MeasuredTensor

__all__ = ["Powers"]

_NEAR_LIMIT = 32752.0
"""Weights from here on are within a factor of 2 of float16's limit, which GD103 reports."""


@dataclass(slots=True)
class Powers:
    """By how much each tensor of a checkpoint is scaled so far.

    Attributes:
        case: The case.
        rule: Id of the rule whose findings the edits mend.
        pass_name: The pass that wants them.
        exponents: Canonical name -> power of two that the edits so far come to.
    """

    case: Case
    rule: str
    pass_name: str
    exponents: dict[str, int] = field(default_factory=dict)

    def scale(self, name: str, exponent: int, exactness: Exactness, note: Note) -> Scale:
        """The edit of one tensor, judged together with those that it has already.

        Args:
            name: Its canonical name.
            exponent: The power.
            exactness: How exact the edit is if nothing is lost where the tensor is stored.
            note: What its reason begins with.

        Raises:
            RefusedError: If it would cost the tensor more than a few bits, or bring it near float16's limit.
        """
        tensor = scalable(self.case.exam, name)
        total = self.exponents.get(name, 0) + exponent
        if total > 0 and math.ldexp(tensor.stats.absmax or 0.0, total) >= _NEAR_LIMIT:
            on_disk = self.case.exam.disk_name(name)
            raise RefusedError(f"{on_disk} would have to take 2^{total}, and its weights would near {FP16_MAX:g}")
        refuse_coarse(tensor, total)
        stored, in_float16 = self._losses(tensor, total, tensor.info.dtype), self._losses(tensor, total, "F16")
        note = note.plus(*_account(stored, in_float16, tensor.info.dtype))
        return Scale(
            tensor=tensor.info.name,
            exponent=exponent,
            pass_name=self.pass_name,
            exactness="lossy" if stored.flushed else "rounded" if stored.lost else exactness,
            reason=Reason(self.rule, note.text, note.evidence),
        )

    def gain(self, name: str, exponent: int, exactness: Exactness, note: Note) -> ScaleGain:
        """The edit of a gain that one is added to.

        Args:
            name: Its canonical name.
            exponent: The power.
            exactness: How exact the edit is if float32 holds the scaled gain.
            note: What its reason begins with.

        Raises:
            RefusedError: If it is absent, of a dtype with scales of its own, or not finite.
        """
        tensor = scalable(self.case.exam, name)
        losses = self.case.gains(tensor.info.name, exponent)
        note = note.plus(
            f"Stored as float32, which changes a gain by at most {losses.in_float32:.1e} of the gains' rms; a loader "
            f"that casts it to float16 changes one by up to {losses.in_float16:.1e}, to bfloat16 by "
            f"{losses.in_bfloat16:.1e}.",
            {"in_float32": losses.in_float32, "in_float16": losses.in_float16, "in_bfloat16": losses.in_bfloat16},
        )
        return ScaleGain(
            tensor=tensor.info.name,
            exponent=exponent,
            pass_name=self.pass_name,
            exactness="rounded" if losses.inexact else exactness,
            reason=Reason(self.rule, note.text, note.evidence),
        )

    def noted(self, edits: Iterable[Scale | ScaleGain]) -> None:
        """Write down what each tensor comes to."""
        for edit in edits:
            name = self.case.exam.canonical(edit.tensor)
            self.exponents[name] = self.exponents.get(name, 0) + edit.exponent

    def _losses(self, tensor: MeasuredTensor, exponent: int, dtype: str) -> Losses:
        return self.case.losses(tensor.info.name, exponent, dtype)


def _account(stored: Losses, in_float16: Losses, dtype: str) -> tuple[str, dict[str, Scalar]]:
    """What the scaled weights lose where they are stored, and what a later cast to float16 would make of them."""
    numbers: dict[str, Scalar] = {"fp16_subnormal": in_float16.subnormal, "fp16_underflow": in_float16.flushed}
    if not stored.lost:
        return "", numbers
    text = f"{stored.lost:,} elements fall below the normal {dtype} and lose bits; {stored.flushed:,} of them become 0."
    return text, {**numbers, "lost": stored.lost, "flushed": stored.flushed}
