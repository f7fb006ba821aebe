"""What an edit of a plan changes, does and costs, in a few words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gemma_doctor.checkpoint.dtypes import BITS
from gemma_doctor.plans import (
    Add,
    Cast,
    Clamp,
    Drop,
    Edit,
    Rename,
    Scale,
    ScaleGain,
    SetConfig,
    SetMetadata,
    ZeroNonfinite,
)
from gemma_doctor.records import Exactness
from gemma_doctor.reports.names import fold
from gemma_doctor.reports.wording import size
from gemma_doctor.tensors import TensorInfo

__all__ = ["EXACTNESS", "Line", "cost", "lines", "signed", "subject"]

EXACTNESS: Mapping[Exactness, str] = {
    "exact": "the same function",
    "eps": "the same function up to a norm's eps",
    "rounded": "stored values are rounded",
    "lossy": "changes the function",
}
"""What an edit does to the function that the model computes."""


@dataclass(frozen=True, slots=True)
class Line:
    """A family of tensors to which a plan does the same for the same reason.

    Attributes:
        name: Their names, folded.
        count: How many they are.
        does: What is done.
        rule: The rule whose findings it mends.
        cost: Bytes that it adds, or takes if negative.
    """

    name: str
    count: int
    does: str
    rule: str
    cost: int


def lines(edits: Iterable[Edit], tensors: Mapping[str, TensorInfo]) -> list[Line]:
    """The edits, a line for each family.

    Args:
        edits: Of one pass.
        tensors: The source's tensors, by name.
    """
    alike: dict[tuple[str, str], dict[str, int]] = {}
    for edit in edits:
        alike.setdefault((_does(edit, tensors), edit.reason.rule), {})[subject(edit)] = cost(edit, tensors)
    return [
        Line(pattern, len(members), does, rule, sum(costs[name] for name in members))
        for (does, rule), costs in alike.items()
        for pattern, members in fold(costs)
    ]


def subject(edit: Edit) -> str:
    """What an edit changes."""
    match edit:
        case SetConfig():
            return f"{'.'.join(edit.path)} in config.json"
        case SetMetadata():
            return f"{edit.key} in {edit.file}"
        case _:
            return edit.tensor


def _does(edit: Edit, tensors: Mapping[str, TensorInfo]) -> str:  # noqa: C901, PLR0911  # one line for each kind of edit
    """What an edit does, in a few words."""
    match edit:
        case Scale():
            return f"times 2^{edit.exponent}"
        case ScaleGain():
            return f"1 + w times 2^{edit.exponent}"
        case Cast():
            return f"{tensors[edit.tensor].dtype} to {edit.dtype}" if edit.tensor in tensors else f"to {edit.dtype}"
        case Clamp():
            return f"clamped to {edit.limit:g}"
        case ZeroNonfinite():
            return "NaN and inf to 0"
        case Drop():
            return "left out"
        case Add():
            return f"{math.prod(edit.shape):,} zeros, {edit.dtype}"
        case Rename():
            return f"to {_new_head(edit.tensor, edit.to)}"
        case SetConfig():
            return f"set to {edit.value}"
        case SetMetadata():
            return f"{edit.number} as UINT32"


def cost(edit: Edit, tensors: Mapping[str, TensorInfo]) -> int:
    """Bytes that an edit adds to the tensors, or takes from them if negative."""
    tensor = None if isinstance(edit, SetConfig | SetMetadata) else tensors.get(edit.tensor)
    if isinstance(edit, Add):
        return math.prod(edit.shape) * BITS[edit.dtype] // 8
    if tensor is not None and isinstance(edit, Cast):
        return tensor.numel * BITS[edit.dtype] // 8 - tensor.nbytes
    if tensor is not None and isinstance(edit, ScaleGain):
        return tensor.numel * 4 - tensor.nbytes
    return -tensor.nbytes if tensor is not None and isinstance(edit, Drop) else 0


def signed(nbytes: int) -> str:
    """A difference in bytes with its sign; ``"0"`` for none."""
    return f"{'-' if nbytes < 0 else '+'}{size(abs(nbytes))}" if nbytes else "0"


def _new_head(old: str, new: str) -> str:
    """The new name up to where both go on alike."""
    parts, others = new.split("."), old.split(".")
    while len(parts) > 1 and len(others) > 1 and parts[-1] == others[-1]:
        del parts[-1], others[-1]
    return ".".join(parts) + (".…" if ".".join(parts) != new else "")
