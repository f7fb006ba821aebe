"""cast-dtype: the tensors' dtype and the config's agree again.

## What it does

**Where most tensors are not stored in the config's dtype** (GD203 without a tensor), either the config is corrected or
the tensors are cast; never are the values of a whole checkpoint rounded if the config can give way:

* The config's dtype holds every stored value (float32 over bfloat16): the tensors are cast to it, as a loader that
  follows the config does anyway.
* It holds fewer (float16 over bfloat16, bfloat16 over float32): the config is set to what is stored. The weights are
  right, and the config would ruin or round them.
* It is bfloat16, over float16: the tensors are cast to it, rounded. A config that says float16 would make the
  activations float16, too.

The config is corrected in every section that states the wrong dtype, under `dtype` and `torch_dtype`. The few tensors
that agreed with it before are then cast to what it says now, but for vectors that have more bits on purpose.

**Single tensors** that deviate from the config (GD203) or from their siblings (GD204) are cast to the dtype of these.

## Which findings it mends

GD203 dtype-config-mismatch and GD204 mixed-dtype-module.

## Exactness

Exact towards a dtype that holds every value, and where only the config changes. Rounded towards another; each edit then
says how many elements become subnormal, inf or zero, counted from the bytes. A cast that makes an inf or a zero of a
number is lossy and needs `--unsafe`.

## Example

A merged Gemma 3n E2B: weights in bfloat16, `"dtype": "float16"` in `config.json` and its three sections. Four values of
the config change, and no tensor.

## Limits

`quantization_config` is not touched. Of a multimodal config whose sections state different dtypes on purpose, only the
sections that state the wrong one change. A tensor that `rescale-conv` scales is not cast to float16 in the same plan,
because the counts would no longer hold: repair the output once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gemma_doctor.architectures.dtypes import FULL_FLOATS, STORED_AS, cast
from gemma_doctor.plans import Cast, Edit, Reason, SetConfig
from gemma_doctor.records import Exactness, Finding, Scalar
from gemma_doctor.repair.evidence.case import Answer, Case, Mend, Pass, left
from gemma_doctor.tensors import TensorInfo

__all__ = ["PASS"]

_KEYS = ("dtype", "torch_dtype")
_TORCH_NAMES = {stored: name for name, stored in STORED_AS.items()}


def plan(case: Case) -> Iterator[Answer]:
    """The edits for each finding: first the config's dtype, then what deviates from it, then siblings."""
    caster = _Caster(case)
    for finding in sorted(case.findings, key=lambda finding: (finding.rule, finding.tensor is not None)):
        if finding.rule == "GD204":
            yield caster.as_sibling(finding)
        elif finding.tensor is None:
            yield caster.for_most(finding)
        else:
            yield caster.as_config(finding)


@dataclass(slots=True)
class _Caster:
    """What has been decided so far.

    Attributes:
        case: The case.
        wanted: The dtype that the config will state; None where it states none that is known.
        edits: The cast of each tensor that has one.
    """

    case: Case
    wanted: str | None = field(init=False)
    edits: dict[str, Cast] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wanted = STORED_AS.get(self.case.exam.model.dtype or "")

    def for_most(self, finding: Finding) -> Answer:
        """The whole checkpoint against its config."""
        stored = str(finding.evidence["dtype"])
        if self.wanted is None or stored not in FULL_FLOATS:
            return left(finding, "the dtype that the config states is not known")
        if cast(stored, self.wanted).exactness == "exact" or stored == "F16":
            casts = [self._cast(info, self.wanted, finding) for info in self._infos() if info.dtype == stored]
            return Mend(finding, tuple(casts))
        settings = tuple(self._settings(finding, stored))
        if not settings:
            return left(finding, f"no section of config.json states {self.case.exam.model.dtype}")
        wrong, self.wanted = self.wanted, stored
        deviating = [info for info in self._infos() if info.dtype == wrong and not _is_kept(info, stored)]
        return Mend(finding, (*settings, *(self._cast(info, stored, finding) for info in deviating)))

    def as_config(self, finding: Finding) -> Answer:
        """One tensor against the config."""
        info = self.case.exam.checkpoint.tensors.get(finding.tensor or "")
        if info is None or self.wanted is None or info.dtype not in FULL_FLOATS:
            return left(finding, "its dtype, or the config's, is not one that tensors are cast between")
        return Mend(finding, (self._cast(info, self.wanted, finding),))

    def as_sibling(self, finding: Finding) -> Answer:
        """One tensor against its siblings; the config's dtype, where it has decided on either, wins."""
        tensors = self.case.exam.checkpoint.tensors
        info, beside = (tensors.get(name or "") for name in (finding.tensor, str(finding.evidence["beside"])))
        if info is None or beside is None or not {info.dtype, beside.dtype} <= FULL_FLOATS:
            return left(finding, "float8 and integers are quantised weights, which are not cast")
        mine, its = self.edits.get(info.name), self.edits.get(beside.name)
        if mine is None and (its is None or its.dtype != info.dtype):
            return Mend(finding, (self._cast(info, its.dtype if its else beside.dtype, finding),))
        done = mine or its
        if done is None or (mine.dtype if mine else info.dtype) != (its.dtype if its else beside.dtype):
            return left(finding, f"the config's dtype is not that of {beside.name}, which is kept with more bits")
        reason = Reason(finding.rule, f"{info.name} and {beside.name} then have one dtype.")
        return Mend(finding, (replace(done, reason=reason),))

    def _infos(self) -> Iterator[TensorInfo]:
        return (info for info in self.case.exam.checkpoint.tensors.values() if info.dtype in FULL_FLOATS)

    def _settings(self, finding: Finding, stored: str) -> Iterator[Edit]:
        """An edit for each place of the config that states the wrong dtype."""
        wrong = self.case.exam.model.dtype or ""
        for path in _stating(self.case.exam.checkpoint.config or {}, wrong):
            message = (
                f"The config says {wrong}, and {finding.evidence['mismatching']:,} tensors are stored as {stored}; a "
                "loader that follows the config would ruin or round them."
            )
            yield SetConfig(
                path=path,
                value=_TORCH_NAMES[stored],
                pass_name=PASS.name,
                exactness="exact",
                reason=Reason(finding.rule, message, {"from": wrong, "stored": stored}),
            )

    def _cast(self, info: TensorInfo, dtype: str, finding: Finding) -> Cast:
        """The cast of one tensor; the first that was decided on stands."""
        if info.name not in self.edits:
            exactness, reason = self._consequences(info, dtype, finding)
            self.edits[info.name] = Cast(
                tensor=info.name, dtype=dtype, pass_name=PASS.name, exactness=exactness, reason=reason
            )
        return self.edits[info.name]

    def _consequences(self, info: TensorInfo, dtype: str, finding: Finding) -> tuple[Exactness, Reason]:
        evidence: dict[str, Scalar] = {"from": info.dtype, "to": dtype, "bytes": info.nbytes}
        if cast(info.dtype, dtype).exactness == "exact":
            return "exact", Reason(finding.rule, f"{dtype} holds every value of {info.dtype}.", evidence)
        found = self.case.losses(info.name, 0, dtype)
        message = (
            f"From {info.dtype} to {dtype}, of {info.numel:,} elements {found.infinite:,} become inf, "
            f"{found.flushed:,} become 0 and {found.subnormal:,} subnormal; the others are rounded to nearest."
        )
        counts = {"infinite": found.infinite, "flushed": found.flushed, "subnormal": found.subnormal}
        exactness: Exactness = "lossy" if found.infinite or found.flushed else "rounded"
        return exactness, Reason(finding.rule, message, {**evidence, **counts})


def _is_kept(info: TensorInfo, wanted: str) -> bool:
    """Whether it is a vector that is kept with more bits on purpose (as GD203 has it)."""
    return len(info.shape) <= 1 and cast(wanted, info.dtype).exactness == "exact"


def _stating(config: Mapping[str, Any], dtype: str, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a config states a dtype, in all of its sections but that of a quantiser."""
    for key, value in config.items():
        if key in _KEYS and isinstance(value, str) and value.removeprefix("torch.") == dtype:
            yield (*path, key)
        elif isinstance(value, Mapping) and key != "quantization_config":
            yield from _stating(value, dtype, (*path, key))


PASS = Pass("cast-dtype", "rounded", ("GD203", "GD204"), plan)
