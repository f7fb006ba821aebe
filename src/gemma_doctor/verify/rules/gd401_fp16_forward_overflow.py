"""GD401 fp16-forward-overflow: an operation's output is inf or NaN in float16 and finite in the reference.

## What it checks

Every floating-point output of every operation of a float16 forward pass, below autograd: the residual add between two
modules, the square inside a norm and the casts as well as what modules return; and every parameter and persistent
buffer as it was cast to float16. The first one that is not finite is reported, if the same place of a float32 run with
the same inputs is finite. Infinities that are meant, such as those of a mask, are therefore no finding.

## Why it matters

One inf becomes NaN in the next norm or softmax, and then everything is NaN. Module hooks blame the module that returned
it first; the operation that made it often stands elsewhere.

## Example

    image run, forward pass: aten.convolution in …msfa.ffn.pw_proj.conv makes 1,024 of 131,072 elements inf or NaN; the
    float32 reference reaches 81,234 there, 0.31 bits beyond 65504.

## How to mend

`gemma-doctor repair` with the pass that the finding names; `gemma-doctor verify --guard` shows whether the float16-safe
kernels suffice; or run that part of the model in float32.

## Limits

It holds for the inputs of this run. With `--reference none`, an inf counts unless the operation was given one.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.records import Finding, Scalar
from gemma_doctor.rule import Rule
from gemma_doctor.tensors import FP16_MAX
from gemma_doctor.verifications import FailingOp, Run, bits
from gemma_doctor.verify.evidence import Evidence, plain, where

__all__ = ["RULE"]


def _check(seen: Evidence) -> Iterator[Finding]:
    for run in seen.verification.runs:
        failure = run.first_failure
        if failure is not None and failure.activation.phase != "backward":
            yield RULE.finding(
                _message(run, failure),
                seen.blamed(failure),
                evidence=_numbers(failure),
                repair=seen.mends(failure.activation.module),
            )


def _message(run: Run, failure: FailingOp) -> str:
    what = failure.activation
    said = f"{where(failure, run)} makes {what.nonfinite:,} of {what.stats.count:,} elements inf or NaN"
    if failure.reference_absmax is None:
        return f"{said}. {_operands(failure)}".rstrip()
    reach = f"the float32 reference reaches {plain(failure.reference_absmax)} there"
    beyond = failure.excess
    if beyond is not None and beyond > 0:
        reach += f", {bits(beyond)} beyond {FP16_MAX:.0f}"
    return f"{said}; {reach}. {_operands(failure)}".rstrip()


def _operands(failure: FailingOp) -> str:
    parts = [f"{one.name} up to {plain(one.stats.absmax)}" for one in failure.read if one.stats.absmax is not None]
    constants = [f"{name} {value:g}" for name, value in failure.config.items() if isinstance(value, float)]
    return f"It read {', '.join([*parts, *constants])}." if parts else ""


def _numbers(failure: FailingOp) -> dict[str, Scalar]:
    what = failure.activation
    return {
        "nonfinite": what.nonfinite,
        "elements": what.stats.count,
        "reference_absmax": failure.reference_absmax,
        "limit": FP16_MAX,
        "module": what.module,
        "op": what.op,
        "phase": what.phase,
        "step": what.step,
        "run": what.run,
    }


RULE: Rule[Evidence] = Rule("GD401", "fp16-forward-overflow", "error", _check)
