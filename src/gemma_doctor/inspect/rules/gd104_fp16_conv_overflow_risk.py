"""GD104 fp16-conv-overflow-risk: a convolution whose sums can leave float16's range.

## What it checks

Each convolution's outputs against their limit: 65504, or 256 where the norm that reads them squares them in their own
dtype (timm's `RmsNorm2d` and `RmsNormAct2d`, `layers/fast_norm.py`). Two conditions must hold.

* **It can happen.** From the weights follows a bound that no input exceeds. After an RMS norm with gain g over C
  channels it is `sqrt(C) * max|g| * ||W_j||_2`; in general the smaller of `max|x| * ||W_j||_1` and
  `||x||_2 * ||W_j||_2`, where the largest row j of the weight counts. Below the limit, nothing is reported.
* **It is not far-fetched.** Behind a long residual stream that bound adds up the worst of every block, and is exceeded
  by healthy models too. So an output of 16 times its typical size must leave the limit as well: the rms that the gains
  imply for the input, under independence, times the largest `||W_j||_2`. 16 is a convention: outlier channels of that
  size are common in trained networks, and bounds of the first kind were found 8 to 18 times loose.

## Why it matters

A sum beyond 65504 is inf. In front of a norm that squares in float16, 256 is enough: the mean square becomes inf, its
inverse root 0, and the whole position **0: finite, silent and wrong**. No scan for inf sees it.

## Example

The largest convolution weights of Gemma 3n's vision encoder, as published: `msfa.ffn.pw_proj.conv` 98,
`blocks.2.21.attn.key.down_conv` 37, `blocks.2.32.pw_exp.conv` 34.75, `blocks.2.30.pw_exp.conv` and
`blocks.2.34.pw_exp.conv` 33.75. Each is followed by such a norm.

## How to mend

The pass `rescale-conv` multiplies the weight (and the bias) by a power of two, which the norm behind it takes out
again, up to its eps. The pass `upcast-conv` keeps the weight in float32 and needs a runtime that computes there.

## Limits

**The largest weight proves nothing**: a random model with 98 in that place did not overflow. The rule says *can*, not
*will*; `gemma-doctor verify` runs the model. Where the input is unknown (any architecture that is not declared)
there is no bound: then the finding comes when inputs within 64 could overflow, that is, when the input budget
`65504 / max||W_j||_1` is below 64. That is a heuristic: silero-vad 6.2.3, a healthy speech model, has budgets from 283
up. Where only a norm's gain was not measured, an input of rms 1 is assumed. Linear layers are not judged. With
`--target-dtype bfloat16` the rule is silent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from gemma_doctor.architectures.base import Conv
from gemma_doctor.architectures.bounds import Bound, Proof, Prover, Unproven
from gemma_doctor.architectures.typical import REACH, row_spread
from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding, Repair, Scalar
from gemma_doctor.rule import Rule
from gemma_doctor.tensors import FP16_MAX, MeasuredTensor

__all__ = ["RULE"]

ASSUMED_INPUT = 64.0
"""Largest input magnitude of a convolution of which nothing is known."""


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each convolution whose outputs can leave their limit."""
    tensors = {exam.canonical(name): tensor for name, tensor in exam.tensors.items()}
    prover = Prover({name: tensor.stats for name, tensor in tensors.items()})
    for tensor in exam.float16_bound():
        if tensor.role != "conv" or tensor.limit is None or tensor.input_budget is None:
            continue
        conv = exam.model.convs.get(exam.canonical(tensor.info.name))
        if conv is None:
            yield from _unknown(tensor, tensor.limit, "nothing is known about its input")
            continue
        proof = prover.output(exam.as_stored(conv), tensor.stats)
        if isinstance(proof, Unproven) and tensor.limit == FP16_MAX:
            yield from _unknown(tensor, tensor.limit, proof.why)
        else:
            yield from _known(tensor, tensor.limit, conv, proof, row_spread(conv, tensor, tensors))


def _known(tensor: MeasuredTensor, limit: float, conv: Conv, proof: Proof, rms: float) -> Iterator[Finding]:
    """The finding for a convolution whose surroundings are declared."""
    possible = isinstance(proof, Unproven) or proof.peak > limit
    if not possible or REACH * rms < limit:
        return
    mendable = conv.norm is not None or conv.absorber is not None
    yield RULE.finding(
        f"Outputs can pass {limit:g}{_consequence(limit, conv)}: {_proof(proof, limit)}, and {REACH:g} times their "
        f"typical rms is {REACH * rms:.4g}. {_weights(tensor)}",
        tensor.info,
        evidence={
            **_bound(proof, limit),
            **_figures(tensor, limit),
            "typical_rms": rms,
            "reach": REACH,
            "norm": conv.norm.weight if conv.norm else None,
        },
        repair=Repair("rescale-conv", "eps") if mendable else Repair("upcast-conv", "exact"),
    )


def _unknown(tensor: MeasuredTensor, limit: float, why: str) -> Iterator[Finding]:
    """The finding for a convolution with an unknown input: by its input budget."""
    budget = tensor.input_budget or 0.0
    if budget < ASSUMED_INPUT:
        yield RULE.finding(
            f"Outputs can pass {limit:g} for inputs within {ASSUMED_INPUT:g}, which are assumed, not proved ({why}). "
            f"{_weights(tensor)}",
            tensor.info,
            evidence={**_figures(tensor, limit), "assumed_input": ASSUMED_INPUT},
            repair=Repair("upcast-conv", "exact"),
        )


def _consequence(limit: float, conv: Conv) -> str:
    """What happens beyond the limit."""
    if conv.norm is None:
        return " and become inf, with no norm behind them"
    norm = conv.norm.weight.removesuffix(".weight").rpartition(".")[2]
    if limit == FP16_MAX:
        return f" and become inf before the norm '{norm}' reads them"
    return f", where the norm '{norm}' squares them in float16 and silently makes the whole position 0"


def _proof(proof: Proof, limit: float) -> str:
    if isinstance(proof, Unproven):
        return f"no bound is proved ({proof.why})"
    return f"the proved bound is {proof.peak:.4g} ({math.log2(proof.peak / limit):.1f} bits over)"


def _bound(proof: Proof, limit: float) -> Mapping[str, Scalar]:
    if not isinstance(proof, Bound) or math.isinf(proof.peak):
        return {"bound": None, "bits_over": None, "why": proof.why}
    return {"bound": proof.peak, "bits_over": math.log2(proof.peak / limit), "why": proof.why}


def _weights(tensor: MeasuredTensor) -> str:
    return (
        f"The largest |w| is {tensor.stats.absmax:.6g}; inputs up to {tensor.input_budget:.3g} are safe whatever "
        "their signs."
    )


def _figures(tensor: MeasuredTensor, limit: float) -> Mapping[str, Scalar]:
    return {
        "limit": limit,
        "absmax": tensor.stats.absmax,
        "row_l1_max": tensor.stats.row_l1_max,
        "row_l2_max": tensor.stats.row_l2_max,
        "input_budget": tensor.input_budget,
    }


RULE = Rule("GD104", "fp16-conv-overflow-risk", "warning", check)
