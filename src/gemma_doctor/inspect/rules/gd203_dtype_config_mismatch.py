"""GD203 dtype-config-mismatch: tensors are not stored in the config's dtype.

## What it checks

The dtype of every tensor in float64, float32, float16 or bfloat16 against `dtype` (formerly `torch_dtype`) of
`config.json`. Where most tensors differ, there is one finding for all of that dtype; where a few do, one for each.

## Why it matters

Loaders follow the config. **The dangerous case is a config that says float16 above bfloat16 weights**: everything
of 65520 and more becomes inf, everything up to 2^-25 becomes 0, and the activations run in float16 too, without
anybody having asked for it. Gemma 3's activations do not fit. Where the config's dtype has fewer bits, weights are
rounded; where it has more, memory is wasted.

## Example

A merged Gemma 3n E2B: bfloat16 weights, `"dtype": "float16"`.

## How to mend

Correct the config if the weights are right: `"dtype": "bfloat16"`. Otherwise the pass `cast-dtype` stores the tensors
in the config's dtype: exact towards more bits, rounded towards fewer, and refused where it would make an inf or a
zero.

## Limits

Vectors (gains, biases, scales) that are stored with more bits than the config asks for are taken to be kept so on
purpose, and so are the matrices that transformers itself keeps in float32 (T5's `wo`). Float8 and integers are
quantised weights, whose dtype `quantization_config` rules, and are not judged. A multimodal config may give each part
its own dtype; the first one stated is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from gemma_doctor.architectures.dtypes import FULL_FLOATS, STORED_AS, cast
from gemma_doctor.examination import Examination
from gemma_doctor.records import Finding
from gemma_doctor.rule import Rule
from gemma_doctor.tensors import TensorInfo

__all__ = ["RULE"]


def check(exam: Examination) -> Iterator[Finding]:
    """One finding for each dtype that most tensors have against the config, or one for each tensor that deviates."""
    wanted = STORED_AS.get(exam.model.dtype or "")
    if wanted is None:
        return
    infos = [info for info in exam.headers() if info.dtype in FULL_FLOATS]
    usual = _usual(infos)
    if usual not in {None, wanted}:
        yield _for_most(exam, [info for info in infos if info.dtype == usual], wanted, len(infos))
    for info in infos:
        if info.dtype not in {usual, wanted} and not _is_kept(exam, info, wanted):
            yield RULE.finding(
                f"Stored as {info.dtype}, and the config says {exam.model.dtype}: {_effect(info.dtype, wanted)}.",
                info,
                evidence={"dtype": info.dtype, "config": exam.model.dtype},
                repair=cast(info.dtype, wanted),
            )


def _usual(infos: Sequence[TensorInfo]) -> str | None:
    """The dtype of more than half of the matrices (of all tensors, where there are none)."""
    dtypes = Counter(info.dtype for info in infos if len(info.shape) > 1) or Counter(info.dtype for info in infos)
    dtype, count = next(iter(dtypes.most_common(1)), (None, 0))
    return dtype if 2 * count > dtypes.total() else None


def _is_kept(exam: Examination, info: TensorInfo, wanted: str) -> bool:
    """Whether it is kept with more bits on purpose: a vector, or what transformers itself keeps so."""
    known = exam.model.expected.get(exam.canonical(info.name))
    meant = len(info.shape) <= 1 or (known is not None and known.wide)
    return meant and cast(wanted, info.dtype).exactness == "exact"


def _for_most(exam: Examination, infos: Sequence[TensorInfo], wanted: str, total: int) -> Finding:
    """One finding for all tensors of the checkpoint's usual dtype, with what a cast to float16 would do to them."""
    stored = infos[0].dtype
    stats = [exam.tensors[info.name].stats for info in infos if info.name in exam.tensors]
    infinite, flushed = (sum(s.fp16_overflow for s in stats), sum(s.fp16_underflow for s in stats))
    counts = f" ({infinite:,} elements become inf, {flushed:,} become 0)" if wanted == "F16" else ""
    return RULE.finding(
        f"The config says {exam.model.dtype}, and {len(infos):,} of {total:,} floating-point tensors are stored as "
        f"{stored}: {_effect(stored, wanted)}{counts}.",
        evidence={
            "mismatching": len(infos),
            "tensors": total,
            "dtype": stored,
            "config": exam.model.dtype,
            **({"fp16_overflow": infinite, "fp16_underflow": flushed} if wanted == "F16" else {}),
        },
        repair=cast(stored, wanted),
    )


def _effect(stored: str, wanted: str) -> str:
    """What a loader that follows the config does."""
    if wanted == "F16":
        return "a loader that follows the config casts to float16, where 65520 and more is inf and 2^-25 and less is 0"
    if cast(stored, wanted).exactness == "exact":
        return "a loader that follows the config widens it, which changes no value and takes more memory"
    return "a loader that follows the config rounds it"


RULE = Rule("GD203", "dtype-config-mismatch", "warning", check)
