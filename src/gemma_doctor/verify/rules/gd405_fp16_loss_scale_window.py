"""GD405 fp16-loss-scale-window: little room between the loss scales that overflow and those that underflow.

## What it checks

Loss scales that are powers of two from 1 to 2^24. At a sound one every gradient is finite, and no parameter loses more
than half of the non-zero elements of its gradient to zero (one that is no more than rounding, as that of a key's bias
under softmax is, does not count). Less than 2^4 between the least and the largest sound scale is reported, with the
layer that closes the window on either side.

## Why it matters

Gradients change from batch to batch by more than that. A loss scaler then alternates between skipped steps and
gradients of zero.

## Example

    text run: loss scales from 2^9 to 2^11 are sound, 2 bits of room; above, gradients of …layers.0 overflow; below,
    those of …layers.29.altup vanish

## How to mend

Run the named layers in float32 or bfloat16 (`gemma-doctor verify --guard` shows whether the float16-safe kernels
suffice), or train in `--mode amp`, whose gradients of weights are float32.

## Limits

It holds for the inputs of this run. Where every scale overflows, GD402 reports it instead. With `--loss-scale N` there
is no window; reported is then that gradients vanish at that scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule
from gemma_doctor.verifications import LossScales, Run, bits
from gemma_doctor.verify.evidence import Evidence, plain

__all__ = ["RULE"]

_ROOM = 4.0
"""Bits of room that a loss scaler needs (CONTRACT: 2^4)."""


def _check(seen: Evidence) -> Iterator[Finding]:
    for run in seen.verification.runs:
        scales = run.loss_scales
        if scales is None or all(t.outcome == "overflow" for t in scales.trials):
            continue
        if not scales.sound or (len(scales.trials) > 1 and (scales.room or 0.0) < _ROOM):
            yield RULE.finding(
                _message(run, scales),
                evidence={
                    "room_bits": scales.room,
                    "least_sound": min(scales.sound, default=None),
                    "largest_sound": max(scales.sound, default=None),
                    "run": run.modality,
                },
            )


def _message(run: Run, scales: LossScales) -> str:
    if len(scales.trials) == 1:
        (trial,) = scales.trials
        number = f"{trial.parameters:,} parameter{'s' * (trial.parameters != 1)}"
        where = trial.module or "the model itself"
        return (
            f"{run.modality} run: gradients of {number}, of {where} among them, vanish at loss scale "
            f"{plain(trial.scale)}, the only one tried"
        )
    sound = scales.sound
    said = "no loss scale is sound"
    if sound:
        low, high = math.log2(min(sound)), math.log2(max(sound))
        said = f"loss scales from 2^{low:g} to 2^{high:g} are sound, {bits(high - low)} of room"
    above = next((trial.module for trial in scales.trials if trial.outcome == "overflow"), None)
    below = next((trial.module for trial in reversed(scales.trials) if trial.outcome == "underflow"), None)
    parts = [f"above, gradients of {above} overflow"] if above else []
    parts += [f"below, those of {below} vanish"] if below else []
    return "; ".join([f"{run.modality} run: {said}", *parts])


RULE: Rule[Evidence] = Rule("GD405", "fp16-loss-scale-window", "warning", _check)
