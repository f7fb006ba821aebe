"""What running a model showed, in Markdown: the first operation that failed, the drift, and where room is least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gemma_doctor.records import Report
from gemma_doctor.reports.convolutions import number
from gemma_doctor.reports.judged import blind, without_backward
from gemma_doctor.reports.markdown_text import cell, code, prose
from gemma_doctor.reports.names import clipped
from gemma_doctor.reports.wording import counted, listed
from gemma_doctor.verifications import Activation, Drift, FailingOp, Run, Verification

__all__ = ["verification_lines"]

_TIGHTEST = 5  # activations with the least room that are shown


def verification_lines(report: Report) -> Iterator[str]:
    """The lines of the section; none for a scan."""
    verification = report.verification
    if verification is None:
        return
    yield f"**Verification** {_how(verification)}"
    yield ""
    yield "| input | operations | first failure | drift from the reference | loss scales |"
    yield "| --- | ---: | --- | --- | --- |"
    for run in verification.runs:
        outcome = f"{_failed(run.first_failure)} | {_drift(run)} | {_scales(report, run)}"
        yield f"| {_input(run)} | {run.operations:,} | {outcome} |"
    for run in verification.runs:
        if run.first_failure is not None:
            yield ""
            yield _failure(run.modality, run.first_failure)
    yield from _tightest(report.activations)


def _how(verification: Verification) -> str:
    passes = "forward and backward" if verification.trained else "forward"
    guarded = ", with the float16-safe kernels" if verification.guarded else ""
    frozen = "".join(f", {clipped(glob, 100)} frozen" for glob in verification.frozen)
    return prose(f"on {clipped(verification.device, 100)}: {passes}{frozen}, mode {verification.mode}{guarded}.")


def _input(run: Run) -> str:
    return f"{run.modality}: {_in_cell(run.inputs)}"


def _in_cell(text: str) -> str:
    return cell(clipped(text, 100)) if text else "-"


def _failed(failure: FailingOp | None) -> str:
    return "none" if failure is None else f"{_in_cell(failure.activation.op)} in {_in_cell(failure.activation.module)}"


def _drift(run: Run) -> str:
    both = ((run.drift, ""), (run.bfloat16_drift, " (bfloat16: {})"))
    said = "".join((form or "{}").format(_one_drift(run, drift)) for drift, form in both if drift is not None)
    return (said if run.classifies else f"{_in_cell(run.output)}: relative error {said}") if said else "-"


def _one_drift(run: Run, drift: Drift) -> str:
    if not run.classifies:
        return "not finite" if drift.error is None else f"{drift.error:.3g}"
    divergence = "not finite" if drift.kl is None else f"{drift.kl:.3g} nats"
    return f"KL {divergence}, top-1 {drift.top1:.1%}"


def _scales(report: Report, run: Run) -> str:
    if why := without_backward(report, run):
        return why
    if run.loss_scales is None:
        return "-"
    sound, room = run.loss_scales.sound, run.loss_scales.room
    if not sound or room is None:
        return "none of those tried"
    return f"{min(sound):g} to {max(sound):g} ({room:.3g} bits){blind(run)}"


def _failure(modality: str, failure: FailingOp) -> str:
    """The first failing operation of a run in a sentence or two."""
    activation = failure.activation
    where = code(activation.module) if activation.module else "the model itself"
    kinds = ((activation.stats.nan, "NaN"), (activation.stats.inf, "inf"))
    what = [f"{count:,} {kind}" for count, kind in kinds if count]
    excess = (
        ""
        if failure.excess is None
        else f" In the reference its largest magnitude is {number(failure.reference_absmax)}, "
        f"{abs(failure.excess):.3g} bits {'beyond' if failure.excess > 0 else 'within'} float16's range."
    )
    said = f": {listed(what)} of {activation.stats.count:,} elements" if what else ""
    return f"First failure with {modality} ({activation.phase}): {code(activation.op)} in {where}{said}.{excess}"


def _tightest(activations: Sequence[Activation]) -> Iterator[str]:
    """The activations whose largest finite magnitude comes closest to float16's."""
    rooms = [(activation.headroom, activation) for activation in activations if activation.headroom is not None]
    if not rooms:
        return
    yield ""
    yield f"Least room below 65504 ({min(len(rooms), _TIGHTEST)} of {counted(len(rooms), 'activation')}):"
    yield ""
    yield "| operation | module | max abs | room in bits |"
    yield "| --- | --- | ---: | ---: |"
    for room, activation in sorted(rooms, key=lambda pair: pair[0])[:_TIGHTEST]:
        where = f"{_in_cell(activation.op)} | {_in_cell(activation.module)}"
        yield f"| {where} | {number(activation.peak)} | {room:.3g} |"
