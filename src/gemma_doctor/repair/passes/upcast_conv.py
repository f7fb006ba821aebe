"""upcast-conv: the published way: convolutions that can overflow are stored in float32.

## What it does

The weight of each convolution with a finding, and its bias, are cast to float32 in the file. Nothing else changes: the
convolution then computes in float32, *if the loader keeps the dtype and the runtime casts its input*.

## Which findings it mends

GD104 fp16-conv-overflow-risk. By default only those that `rescale-conv` cannot mend, because nothing around the
convolution is known that would take the factor out again. With `--pass upcast-conv` it mends all of them.

## Exactness

Exact: float32 holds every float16 and bfloat16 value.

## Example

`msfa.ffn.pw_proj.conv.weight` of Gemma 3n, whose largest weight is 98: 2 bytes an element become 4.

## Limits

**A loader that is told a dtype casts every parameter to it**, these included: transformers with `dtype=torch.float16`
(formerly `torch_dtype`), and any later `model.half()`. Then nothing is gained. It needs `gemma-doctor verify --guard`
or `gemma_doctor.kernels.guard(model)`, which run such convolutions in float32, or a loader that keeps mixed dtypes. The
next scan reports these tensors as deviating from the config's dtype (GD203), which they do. `rescale-conv` costs
nothing at run time and works with every loader; the two cannot be combined.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.architectures.dtypes import cast
from gemma_doctor.plans import Cast, Reason
from gemma_doctor.records import Finding, Scalar
from gemma_doctor.repair.evidence.case import Answer, Case, Mend, Pass, left
from gemma_doctor.tensors import TensorInfo

__all__ = ["PASS"]

_WARNING = (
    "Loaders that are told a dtype (dtype=, formerly torch_dtype=) cast it back to that: it needs a loader that keeps "
    "mixed dtypes, or --guard."
)


def plan(case: Case) -> Iterator[Answer]:
    """An edit for the weight and one for the bias of each convolution with a finding."""
    tensors = case.exam.checkpoint.tensors
    for finding in case.findings:
        weight = tensors.get(finding.tensor or "")
        if weight is None or cast(weight.dtype, "F32").exactness != "exact":
            dtype = weight.dtype if weight else "unknown"
            yield left(
                finding, f"its weight is stored as {dtype}, which float32 gives no more range: run it with --guard"
            )
            continue
        bias = tensors.get(f"{weight.name.removesuffix('weight')}bias")
        both = [weight, bias] if bias and cast(bias.dtype, "F32").exactness == "exact" else [weight]
        yield Mend(finding, tuple(_cast(tensor, finding) for tensor in both))


def _cast(tensor: TensorInfo, finding: Finding) -> Cast:
    message = f"Its sums can leave float16's range; float32 holds them. {_WARNING}"
    evidence: dict[str, Scalar] = {"from": tensor.dtype, "bytes": tensor.nbytes, "bytes_after": 4 * tensor.numel}
    reason = Reason(finding.rule, message, evidence)
    return Cast(tensor=tensor.name, dtype="F32", pass_name=PASS.name, exactness="exact", reason=reason)


PASS = Pass("upcast-conv", "exact", ("GD104",), plan, conflicts=("rescale-conv",))
