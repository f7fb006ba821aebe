"""Plans made by hand, and an independent answer to "what should the output be?"."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from checkpoints import Raw
from oracle import FLOATS

from gemma_doctor.checkpoint import Checkpoint, FileBytes, open_checkpoint
from gemma_doctor.plans import (
    Add,
    Applied,
    Cast,
    Clamp,
    Drop,
    Edit,
    Plan,
    Reason,
    Rename,
    Scale,
    ScaleGain,
    SetConfig,
    ZeroNonfinite,
)
from gemma_doctor.records import Exactness
from gemma_doctor.repair.applying.apply import apply
from gemma_doctor.repair.fingerprint import fingerprint

Doubles: TypeAlias = npt.NDArray[np.float64]
Change: TypeAlias = Scale | ScaleGain | Cast | Clamp | ZeroNonfinite

REASON = Reason("GD104", "A sum can leave float16's range.", {"bound": 70000.0})


def scale_gain(tensor: str, exponent: int, exactness: Exactness = "rounded") -> ScaleGain:
    """Multiply a gain that one is added to by a power of two."""
    return ScaleGain(tensor=tensor, exponent=exponent, pass_name="rescale-residual", exactness=exactness, reason=REASON)


def scale(tensor: str, exponent: int, exactness: Exactness = "exact") -> Scale:
    """A scaling."""
    return Scale(tensor=tensor, exponent=exponent, pass_name="rescale-conv", exactness=exactness, reason=REASON)


def cast(tensor: str, dtype: str, exactness: Exactness = "rounded") -> Cast:
    """A cast."""
    return Cast(tensor=tensor, dtype=dtype, pass_name="cast-dtype", exactness=exactness, reason=REASON)


def clamp(tensor: str, limit: float, exactness: Exactness = "lossy") -> Clamp:
    """A clamp."""
    return Clamp(tensor=tensor, limit=limit, pass_name="clamp-overflow", exactness=exactness, reason=REASON)


def zero(tensor: str, exactness: Exactness = "lossy") -> ZeroNonfinite:
    """A zeroing of NaN and inf."""
    return ZeroNonfinite(tensor=tensor, pass_name="zero-nonfinite", exactness=exactness, reason=REASON)


def drop(tensor: str) -> Drop:
    """A drop."""
    return Drop(tensor=tensor, pass_name="drop-tied-head", exactness="exact", reason=REASON)


def rename(tensor: str, to: str) -> Rename:
    """A rename."""
    return Rename(tensor=tensor, to=to, pass_name="rename-keys", exactness="exact", reason=REASON)


def add(tensor: str, dtype: str, shape: tuple[int, ...], beside: str) -> Add:
    """An added tensor."""
    return Add(
        tensor=tensor,
        dtype=dtype,
        shape=shape,
        beside=beside,
        pass_name="add-stem-bias",
        exactness="exact",
        reason=REASON,
    )


def set_config(value: str | float | bool | None, *path: str) -> SetConfig:  # noqa: FBT001  # a JSON value
    """A change of ``config.json``."""
    return SetConfig(path=path, value=value, pass_name="cast-dtype", exactness="exact", reason=REASON)


def plan_for(checkpoint: Checkpoint, *edits: Edit) -> Plan:
    """A plan of these edits, its fingerprint as a planner would take it."""
    read = {edit.tensor for edit in edits if isinstance(edit, Change)}
    with FileBytes(checkpoint) as files:
        mark = fingerprint(checkpoint, files, sorted(read & checkpoint.tensors.keys()))
    return Plan("0.1.0", "the-source", mark, edits)


def mend(source: Path, output: Path, *edits: Edit, link: bool = False, force: bool = False) -> Applied:
    """Open, plan, apply."""
    checkpoint = open_checkpoint(source)
    return apply(plan_for(checkpoint, *edits), checkpoint, output, link=link, force=force)


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def values_of(bits: npt.NDArray[Any], dtype: str) -> Doubles:
    """What the bits stand for."""
    with np.errstate(invalid="ignore"):
        return FLOATS[dtype][1](bits).astype(np.float64)


def bits_of(data: bytes, dtype: str) -> npt.NDArray[Any]:
    """A tensor's bytes as its elements' bits."""
    return np.frombuffer(data, FLOATS[dtype][0])


@cache
def _magnitudes(dtype: str) -> Doubles:
    """Every finite magnitude of a narrow format, by its code, and the one that its exponent range ends before."""
    width = np.dtype(FLOATS[dtype][0]).itemsize * 8
    values = values_of(np.arange(1 << (width - 1), dtype=FLOATS[dtype][0]), dtype)
    finite = values[np.isfinite(values)]
    return np.append(finite, 2 * finite[-1] - finite[-2])


def nearest(values: Doubles, dtype: str) -> Doubles:
    """The format's value nearest to each, ties to the even code, found by looking through all of them.

    float32 and float64 have too many; there NumPy's own conversion answers.
    """
    if dtype in ("F32", "F64"):
        with np.errstate(all="ignore"):
            return values.astype(np.float32 if dtype == "F32" else np.float64).astype(np.float64)
    table = _magnitudes(dtype)
    sought = np.minimum(np.abs(np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)), table[-1])
    above = np.clip(np.searchsorted(table, sought), 1, table.size - 1)
    below = above - 1
    to_above, to_below = table[above] - sought, sought - table[below]
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    code = np.where(up, above, below)
    beyond = np.nan if dtype == "F8_E4M3" else np.inf
    found = np.where(code == table.size - 1, beyond, table[code])
    return np.where(np.isnan(values), np.nan, np.copysign(found, values))


def _not_above(limit: float, dtype: str) -> float:
    if dtype == "F64":
        return limit
    if dtype == "F32":
        single = np.float32(limit)
        return float(single if float(single) <= limit else np.nextafter(single, np.float32(0)))
    finite = _magnitudes(dtype)[:-1]
    return float(finite[finite <= limit].max())


def model_of(change: Change, values: Doubles, dtype: str) -> tuple[Doubles, str]:
    """What a change makes of some values of a dtype, and the dtype then."""
    with np.errstate(all="ignore"):
        if isinstance(change, Scale):
            finite = np.isfinite(values)
            return np.where(finite, nearest(np.ldexp(values, change.exponent), dtype), values), dtype
        if isinstance(change, ScaleGain):
            return nearest(np.ldexp(1 + values, change.exponent) - 1, "F32"), "F32"
        if isinstance(change, Cast):
            return nearest(values, change.dtype), change.dtype
        if isinstance(change, Clamp):
            limit = _not_above(change.limit, dtype)
            return np.where(np.abs(values) > limit, np.copysign(limit, values), values), dtype
        return np.where(np.isfinite(values), values, 0.0), dtype


def modelled(raw: Raw, *changes: Change) -> tuple[Doubles, str]:
    """A tensor's values and dtype after some changes."""
    values, dtype = values_of(bits_of(raw.data, raw.dtype), raw.dtype), raw.dtype
    for change in changes:
        values, dtype = model_of(change, values, dtype)
    return values, dtype


def same_values(one: Doubles, other: Doubles) -> bool:
    """Whether two arrays hold the same values, NaN and signed zero included."""
    nan = np.isnan(one)
    return (
        bool(np.array_equal(nan, np.isnan(other)))
        and bool(np.array_equal(one[~nan], other[~nan]))
        and bool(np.array_equal(np.signbit(one[~nan]), np.signbit(other[~nan])))
    )
