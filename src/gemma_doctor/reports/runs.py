"""What running a model showed, for people at a terminal: a few lines for each run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gemma_doctor.records import Report
from gemma_doctor.reports.judged import blind, without_backward
from gemma_doctor.reports.sheet import Sheet
from gemma_doctor.reports.wording import counted, size
from gemma_doctor.verifications import Activation, Drift, LossScales, Run, Verification, bits

__all__ = ["write_runs"]


def write_runs(report: Report, sheet: Sheet) -> None:
    """Print every run, and what of a T4 was imitated; nothing for a scan."""
    verification = report.verification
    if verification is None:
        return
    for run in verification.runs:
        sheet.blank()
        sheet.paragraph((f"{run.modality} run", "bold"), f": {run.inputs}", hang=2)
        for line in (*_lines(report, run), *_backward(report, run)):
            sheet.paragraph(line, indent=2, hang=2)
    sheet.blank()
    for line in _setting(verification):
        sheet.paragraph((line, "dim"), hang=2)


def _lines(report: Report, run: Run) -> Iterator[str]:
    own = [one for one in report.activations if one.run == run.modality]
    broken = sum(one.nonfinite > 0 for one in own)
    partly = " in the forward pass" if without_backward(report, run) else ""
    found = f"inf or NaN in {counted(broken, 'place')}" if run.first_failure else f"none overflowed{partly}"
    if run.unjudged:
        found = f"inf or NaN in {counted(broken, 'place')}, in float32 too"
    yield f"{run.operations:,} outputs of operations measured: {found}"
    yield from _largest([one for one in own if one.dtype == "F16" and one.phase == "forward" and one.shape])
    kind = "" if run.classifies else "relative error "
    if run.drift is not None:
        beside = "" if run.bfloat16_drift is None else f" (bfloat16: {_drift(run, run.bfloat16_drift)})"
        yield f"{run.output}: {kind}{_drift(run, run.drift)}{beside}"
    if run.against_drift is not None:
        yield f"float32 {run.output} against the other checkpoint's: {kind}{_drift(run, run.against_drift)}"
    if run.loss is not None:
        beside = "" if run.reference_loss is None else f" (float32: {run.reference_loss:.6g})"
        yield f"loss {run.loss:.6g}{beside}"


def _backward(report: Report, run: Run) -> Iterator[str]:
    why = without_backward(report, run)
    if why:
        yield why
    if run.loss_scales is not None:
        yield f"{'the other gradients: ' if why else ''}{_scales(run.loss_scales)}{blind(run)}"


def _largest(own: Sequence[Activation]) -> Iterator[str]:
    """The float16 output that comes closest to the limit; single numbers are constants, such as a clipping."""
    closest = max(own, key=lambda one: one.peak or 0.0, default=None)
    if closest is not None and closest.peak and closest.headroom is not None:
        where = f"{closest.op} of {closest.module or 'the model itself'}"
        yield f"largest |x| {closest.peak:,.6g}, {bits(closest.headroom)} below 65504, in {where}"


def _drift(run: Run, drift: Drift) -> str:
    if not run.classifies:
        return "not finite" if drift.error is None else f"{drift.error:.2g}"
    divergence = "KL not finite" if drift.kl is None else f"KL {drift.kl:.2g} nats"
    return f"{divergence}, top-1 {drift.top1:.1%}"


def _scales(scales: LossScales) -> str:
    if len(scales.trials) == 1:  # the user named it
        (trial,) = scales.trials
        of = f" of {trial.module}" if trial.module else ""
        how = {"sound": "is sound", "overflow": f"overflows: gradients{of}", "underflow": f"loses gradients{of}"}
        return f"loss scale {trial.scale:,.10g} {how[trial.outcome]}"
    if not scales.sound or scales.room is None:
        return f"loss scales: none of {counted(len(scales.trials), 'tried scale')} is sound"
    low, high = (f"2^{math.log2(scale):g}" for scale in (min(scales.sound), max(scales.sound)))
    return f"loss scales {low} to {high} are sound, {bits(scales.room)} of room"


def _setting(verification: Verification) -> Iterator[str]:
    passes = "forward and backward" if verification.trained else "forward only"
    memory = "" if verification.peak_memory is None else f", at most {size(verification.peak_memory)} of tensors"
    guarded = ", with the float16-safe kernels" if verification.guarded else ""
    frozen = f", {', '.join(verification.frozen)} frozen" if verification.frozen else ""
    yield f"Ran on {verification.device}, {passes}{frozen}, mode {verification.mode}{guarded}{memory}."
    if verification.not_imitated:
        yield f"As on a T4: {'; '.join(verification.imitated)}."
        yield f"Not as on a T4: {'; '.join(verification.not_imitated)}."
