"""GD404 fp16-output-drift: a model's output drifts beyond what bfloat16 drifts.

## What it checks

The Kullback-Leibler divergence of the float16 run's next-token distribution from the float32 reference's, mean over all
positions, beside that of a bfloat16 run with the same inputs. Of a model without a head (an encoder, say) there are no
logits: there it is the relative error of its first output, such as `last_hidden_state`.

## Why it matters

float16 has three bits more than bfloat16 within its range, so a model that fits drifts less. One that drifts more has
lost something to the range, even where every number is finite.

## Example

    text run: logits drift by 0.31 nats from float32 (top-1 agreement 84 %); bfloat16 drifts by 0.002 nats (99 %)

## How to mend

The findings GD401 and GD403 of the same run name where it happens. Without one, look at the modules with the largest
relative error in the report.

## Limits

It holds for the inputs of this run. Divergences up to 1e-5 nats and relative errors up to 2^-10, which is float16's own
precision, are not reported, whatever bfloat16's, and none is where GD401 or GD402 names an operation that failed.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule
from gemma_doctor.verifications import Drift, Run
from gemma_doctor.verify.evidence import Evidence

__all__ = ["RULE"]

_NOISE = 1e-5
"""Nats: what order of summation alone makes of distributions over 262,144 tokens."""

_PRECISION = 2.0**-10
"""The distance of 1 from the next number in float16: a relative error that any output may have."""


def _check(seen: Evidence) -> Iterator[Finding]:
    for run in seen.verification.runs:
        own, beside = run.drift, run.bfloat16_drift
        if own is None or beside is None or run.first_failure is not None:
            continue
        if run.classifies and _further(own.kl, beside.kl, _NOISE):
            yield _diverges(run, own, beside)
        elif not run.classifies and _further(own.error, beside.error, _PRECISION):
            yield _differs(run, own, beside)


def _further(own: float | None, beside: float | None, least: float) -> bool:
    if beside is None:
        return False
    return own is None or own > max(beside, least)


def _diverges(run: Run, own: Drift, beside: Drift) -> Finding:
    how = "are not finite" if own.kl is None else f"drift by {own.kl:.2g} nats from float32"
    return RULE.finding(
        f"{run.modality} run: logits {how} (top-1 agreement {own.top1:.1%}); bfloat16 drifts by {beside.kl:.2g} nats "
        f"({beside.top1:.1%})",
        evidence={
            "kl": own.kl,
            "top1": own.top1,
            "bfloat16_kl": beside.kl,
            "bfloat16_top1": beside.top1,
            "run": run.modality,
        },
    )


def _differs(run: Run, own: Drift, beside: Drift) -> Finding:
    how = "is not finite" if own.error is None else f"differs by {own.error:.2g} from float32's (relative error)"
    return RULE.finding(
        f"{run.modality} run: {run.output} {how}; bfloat16's by {beside.error:.2g}",
        evidence={
            "output": run.output,
            "error": own.error,
            "bfloat16_error": beside.error,
            "limit": _PRECISION,
            "run": run.modality,
        },
    )


RULE: Rule[Evidence] = Rule("GD404", "fp16-output-drift", "warning", _check)
