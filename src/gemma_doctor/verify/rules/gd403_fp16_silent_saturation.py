"""GD403 fp16-silent-saturation: a finite output that has collapsed against the reference.

## What it checks

What each module returns in float16, beside what it returns in float32 for the same inputs. An output has collapsed if
positions (vectors along the channels) are zero that are not in the reference, or if its relative error is above 0.1 and
more than twice that of a bfloat16 run. bfloat16 has float32's range, so its error is one of precision alone, and a
sound float16 run has about an eighth of it. The first such module of a run is reported.

## Why it matters

A norm that squares in float16 makes inf of 256 and more, the reciprocal root of inf is 0, and the whole position
becomes 0: finite, silent, and wrong. Below 2^-12 the square underflows instead. A running variance that became inf does
the same. A search for inf and NaN in what modules return finds none of these.

## Example

    image run: …msfa.ffn.pw_proj.bn (RmsNormAct2d) returns 25 % of its positions as zero that are not zero in float32;
    relative error 0.5 (bfloat16: 0.004).

## How to mend

`gemma-doctor repair --pass rescale-conv` moves the convolution before such a norm into its window.

## Limits

It holds for the inputs of this run, and needs the reference.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule
from gemma_doctor.verifications import ModuleDrift, Run
from gemma_doctor.verify.evidence import Evidence, collapsed

__all__ = ["RULE"]


def _check(seen: Evidence) -> Iterator[Finding]:
    for run in seen.verification.runs:
        modules = list(collapsed(run))
        if modules:
            first = modules[0]
            yield RULE.finding(
                _message(run, first, len(modules) - 1),
                seen.weight(first.module),
                evidence={
                    "error": first.error,
                    "bfloat16_error": first.bfloat16_error,
                    "collapsed": first.collapsed,
                    "module": first.module,
                    "modules": len(modules),
                    "run": run.modality,
                },
                repair=seen.mends(first.module),
            )


def _message(run: Run, first: ModuleDrift, more: int) -> str:
    beside = "" if first.bfloat16_error is None else f" (bfloat16: {first.bfloat16_error:.2g})"
    what = (
        f"returns {first.collapsed:.2%} of its positions as zero that are not zero in float32;"
        if first.collapsed
        else "returns finite numbers that are not the reference's;"
    )
    rest = f". So do {more:,} modules after it" if more else ""
    return (
        f"{run.modality} run: {first.module or 'the model itself'} ({first.kind}) {what} "
        f"relative error {first.error or 0:.2g}{beside}{rest}"
    )


RULE: Rule[Evidence] = Rule("GD403", "fp16-silent-saturation", "error", _check)
