"""GD109 nonpositive-norm-gain: a norm has not one positive gain.

## What it checks

The gains of every norm that the architecture declares: w, or 1 + w where the module adds one (Gemma 1 to 3). The
finding comes where the largest of them is 0 or below.

## Why it matters

A gain of 0 silences its channel, and a negative one turns its sign. Training starts every gain at 1, and some cross
zero; that all of them do is not what training does. Something was subtracted that was never added, or rounding has
taken what was left. Nothing overflows and nothing is NaN: the model runs, and is wrong.

## Example

llama.cpp stores 1 + w for Gemma 3 and w for Gemma 3n. A converter that subtracts one for both turns gains of 0.3 into
-0.7. And gains that `rescale-residual` divided by 1024 lie at w = -0.999: saved again in bfloat16, whose next values
are -0.996 and -1, they are all -1, and each norm gives 0.

## How to mend

Convert it again with a converter that knows the family, or save the gains in float32. Adding one to w is right only
where one was subtracted too often: compare with the checkpoint that it was made from.

## Limits

A norm with some positive gains is not judged, so a subtraction that leaves some of them above 0 is not seen. Nothing
is said of architectures that are not declared, and of GGUF files, for it is not known there whether one is added;
nothing of a norm with NaN or infinite gains (GD101). Plain gains that are all zero are reported by GD106.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule

__all__ = ["RULE"]

THRESHOLD = 0.0
"""A gain has to be above it to pass a channel on with its sign."""


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each declared norm whose largest gain is not positive."""
    for tensor in exam.floats():
        stats, known = tensor.stats, exam.model.expected.get(exam.canonical(tensor.info.name))
        if known is None or known.role != "norm" or stats.maximum is None or stats.nan or stats.inf:
            continue
        largest = stats.maximum + known.plus_one
        if largest > THRESHOLD or (stats.zeros == stats.count and not known.plus_one):
            continue
        gain = "1 + w" if known.plus_one else "the gain"
        yield RULE.finding(
            f"No gain is above {THRESHOLD:g}: {gain} is at most {largest:.6g} in all {stats.count:,} channels, and "
            "training starts at 1.",
            tensor.info,
            evidence={
                "largest_gain": largest,
                "threshold": THRESHOLD,
                "plus_one": known.plus_one,
                "count": stats.count,
            },
        )


RULE = Rule("GD109", "nonpositive-norm-gain", "warning", check)
