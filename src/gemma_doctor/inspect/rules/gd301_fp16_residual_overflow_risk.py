"""GD301 fp16-residual-overflow-risk: a proved bound on a residual stream leaves float16's range.

## What it checks

From the gains of the norms, the figures of the weights and the config alone follows an upper bound on every tensor
that a float16 run writes: norm outputs, linear layers, products, attention, sums, squares. Each bound comes from an
inequality that no input can break (`gemma_doctor.architectures.bounds` lists them), enlarged by what float16 rounding
can add. The rule compares the bounds with their limits, 65504, or 256 where the next operation squares in float16:

* **a residual stream**: one finding each, with the state that is furthest beyond, by how many bits, and the tensors
  that can add most to it. Where the stream is a plain sum of embeddings and normalised terms (Gemma 2 and 3), the bound
  counts. Where terms go through matrices (the image encoders), bounds add up the worst of every block and are exceeded
  by healthy models too: there 16 times the typical size must leave the limit as well, as in GD104.
* **values inside the layers** that `rescale-residual` can bring under their limit (queries, keys, values, gated
  products and what is projected from them): one note for all of them, where the stream itself is proved or mended, so
  that a proof of the whole model is in reach.

What is below its limit is *proved safe*: whatever the input, no overflow begins there (NaN from an earlier one
passes through it). The report says how many of the values are; where all are, nothing can overflow. Eager attention
writes its scores in float16 as well: those are bounded too, by ||q||_2 * ||k||_2, and counted apart.

## Why it matters

Gemma 3 (1B to 27B) overflows float16 in its residual stream: the sums grow beyond 65504 in a few channels, become inf,
and the next norm makes NaN of them. bfloat16 has the range, but a T4, V100 or RTX 20x has no bfloat16.

## Example

A Gemma 3 of 34 layers and 2560 channels, whose largest 1 + w behind attention and feed-forward is 60: each of the 68
norms can add sqrt(2560) * 60 = 3036 to a channel, together 206,000, 1.7 bits beyond 65504: if it is the same channel
each time. Where the gains' largest channels differ from layer to layer, the bound is the largest sum of one channel.

## How to mend

The pass `rescale-residual` multiplies everything that writes the stream by a power of two, and all that reads it takes
the factor out again. Where every bound then fits, the model cannot overflow in the forward pass, whatever the input.

## Limits

**A bound says *may*, not *will***: it takes the worst of every term at once, and is 2 to 20 times above what models
reach (docs/bounds.md has a table). `gemma-doctor verify` measures. Gemma 3n's AltUp multiplies the bound in every
layer, so that after a few layers nothing is proved of its streams; they are not reported, and not counted as safe
either. Gemma 3n's audio tower is not analysed. Gemma 2 runs eager attention, so its scores count among the values;
nothing normalises its queries and keys, and as a rule they are not proved. Pre-norm decoders (Llama, Mistral, Qwen,
Gemma 1) are not declared: what they add to their stream went through several matrices, whose bounds multiply; how
loose that is has not been tried.

The bounds assume: the model of the config, as transformers 5.23 and timm 1.0.31 run it in float16, without
dropout; sums of products in float32; scaled_dot_product_attention (the default; torch 2.5 or later) or flash attention,
whose scores stay in float32, over at most 131,072 positions, in which every query may attend to some key; Gemma's norms
and softmax in float32; tokens of the vocabulary and pixels as the processor gives them. Nothing is said of the backward
pass. Where a tensor is missing or not finite, nothing is proved, and other rules speak. With `--target-dtype bfloat16`
the rule is silent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gemma_doctor.architectures.base import Rescaling
from gemma_doctor.architectures.ranges import BoundedValue, RangeAnalysis
from gemma_doctor.architectures.typical import REACH, typical_rms
from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding, Repair, Scalar
from gemma_doctor.rule import Rule

__all__ = ["RULE"]

_NAMED = 3  # writers that a finding names

_MENDS = Repair("rescale-residual", "eps")


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each residual stream that can leave its limit, and one for all values inside the layers."""
    if exam.target_dtype != "float16":
        return
    analysis = exam.ranges
    found = [_stream(exam, analysis, name, worst) for name, worst in analysis.streams().items() if _counts(exam, worst)]
    order = {name: index for index, name in enumerate(exam.tensors)}
    yield from sorted(found, key=lambda finding: order.get(finding.tensor or "", len(order)))
    yield from _inside(exam, analysis)


def _counts(exam: Examination, worst: BoundedValue) -> bool:
    """Whether a stream that is beyond its limit is worth a warning."""
    if worst.safe or worst.bound is None:
        return False
    tensors = {exam.canonical(name): tensor for name, tensor in exam.tensors.items()}
    return worst.is_plain or REACH * typical_rms(worst.value.source, tensors) >= worst.value.limit


def _stream(exam: Examination, analysis: RangeAnalysis, name: str, worst: BoundedValue) -> Finding:
    writers = analysis.writers(worst)[:_NAMED]
    largest = ", ".join(f"{exam.disk_name(writer.tensor)} ({writer.bound:.4g})" for writer in writers[1:])
    tensor = exam.measured(writers[0].tensor) if writers else None
    others = f"; after it come {largest}" if largest else ""
    rescaling = next((one for one in exam.model.rescalings if worst.value.name in one.values), None)
    return RULE.finding(
        f"It can add {writers[0].bound:.4g} to {name}, which may reach {worst.bound:.4g} at {worst.value.name}"
        f"{_beyond(worst)}: a bound that holds whatever the input, not a measurement{others}.{_how(rescaling)}",
        tensor.info if tensor else None,
        evidence={
            "stream": name,
            "value": worst.value.name,
            **_numbers(worst),
            **{f"writer {i + 1}": exam.disk_name(writer.tensor) for i, writer in enumerate(writers)},
        },
        repair=_MENDS if rescaling is not None and rescaling.refused is None else None,
    )


def _how(rescaling: Rescaling | None) -> str:
    if rescaling is None:
        return ""
    return "" if rescaling.refused is None else f" It cannot be rescaled: {rescaling.refused}."


def _inside(exam: Examination, analysis: RangeAnalysis) -> Iterator[Finding]:
    """The values inside the layers that can be rescaled, where a proof of the whole is in reach."""
    streams = analysis.streams().keys()
    states = {value for one in exam.model.rescalings if one.name in streams for value in one.values}
    if not all(item.safe or item.is_plain for item in analysis.values if item.value.name in states):
        return
    names = {value for one in exam.model.rescalings if one.name not in streams for value in one.values}
    beyond = [item for item in analysis.values if item.value.name in names and item.bound is not None and not item.safe]
    if not beyond:
        return
    worst = max(beyond, key=lambda item: (item.bound or 0.0) / item.value.limit)
    yield RULE.finding(
        f"{len(beyond):,} values inside the layers are not proved to stay within float16; the furthest is "
        f"{worst.value.name}, which may reach {worst.bound:.4g}{_beyond(worst)} ({worst.derivation}).",
        severity="note",
        evidence={"values": len(beyond), "value": worst.value.name, **_numbers(worst)},
        repair=_MENDS,
    )


def _beyond(item: BoundedValue) -> str:
    bits = item.bits_beyond
    return "" if bits is None else f", {bits:.1f} bits beyond {item.value.limit:g}"


def _numbers(item: BoundedValue) -> dict[str, Scalar]:
    finite = item.bound is not None and math.isfinite(item.bound)
    return {
        "bound": item.bound if finite else None,
        "limit": item.value.limit,
        "bits_beyond": item.bits_beyond,
        "derivation": item.derivation,
    }


RULE = Rule("GD301", "fp16-residual-overflow-risk", "warning", check)
