"""GD402 fp16-backward-overflow: a gradient is inf or NaN at every loss scale tried.

## What it checks

The gradients of all parameters in a float16 backward pass of the model's own loss, at loss scales that are powers of
two, from 1 to 2^24 as far as the search needs them. Gradients that are not finite in the float32 reference either do
not count.

## Why it matters

A loss scaler halves its scale and skips the step until the gradients are finite. Where they never are, training makes
no step at all, and the forward pass may look sound all the while.

## Example

    text run: gradients of 96 parameters, of …layers.0.mlp among them, are inf or NaN at every loss scale tried,
    down to 1; first aten.mul in …layers.7.mlp

## How to mend

In the norms of Gemma 3n's image encoder the gradient holds the third power of the reciprocal root, which leaves float16
where the mean square is below 6e-4: there the pass `rescale-conv` scales the convolution before it up, by what a trace
measured (`verify --trace`, then `repair --calibration`). Elsewhere compute the named module in float32
(`gemma-doctor verify --guard` shows whether that suffices). Where the gradients of few parameters are named and they
need no training, freeze them in training (`gemma-doctor verify --freeze 'model.vision_tower.*'` shows whether that
suffices).

## Limits

It holds for the inputs of this run; scales below 1 are not tried. With `--loss-scale N` it is said of that scale alone:
a smaller one may do.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule
from gemma_doctor.verifications import Run
from gemma_doctor.verify.evidence import Evidence, plain

__all__ = ["RULE"]


def _check(seen: Evidence) -> Iterator[Finding]:
    for run in seen.verification.runs:
        failure = run.first_failure
        forward = failure is not None and failure.activation.phase != "backward"
        if run.loss_scales is None or forward or any(t.outcome != "overflow" for t in run.loss_scales.trials):
            continue
        yield RULE.finding(
            _message(run),
            None if failure is None else seen.blamed(failure),
            evidence={
                "least_scale": min(trial.scale for trial in run.loss_scales.trials),
                "scales_tried": len(run.loss_scales.trials),
                "module": failure.activation.module if failure else None,
                "op": failure.activation.op if failure else None,
                "run": run.modality,
            },
            repair=None if failure is None else seen.lifts(failure.activation.module),
        )


def _message(run: Run) -> str:
    trials = run.loss_scales.trials if run.loss_scales else ()
    least = min(trials, key=lambda trial: trial.scale)
    number = f"{least.parameters:,} parameter{'s' * (least.parameters != 1)}"
    where = least.module or "the model itself"
    scales = "every loss scale tried, down to" if len(trials) > 1 else "loss scale"
    alone = ", the only one tried" if len(trials) == 1 else ""
    said = (
        f"{run.modality} run: gradients of {number}, of {where} among them, are inf or NaN at {scales} "
        f"{plain(least.scale)}{alone}"
    )
    if run.first_failure is None:
        return said
    first = run.first_failure.activation
    return f"{said}; first {first.op} in {first.module or 'the model itself'}"


RULE: Rule[Evidence] = Rule("GD402", "fp16-backward-overflow", "error", _check)
