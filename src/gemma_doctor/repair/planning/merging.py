"""Mends to edits: what several passes want of one tensor becomes one ordered list.

The order is fixed, whatever the order of the passes on the command line. Within a kind, tensors come in model order::

    zero-nonfinite   an infinity must not be clamped to a number that looks meant
    clamp
    scale, gains     before a cast, so that a narrower dtype gets the scaled values
    cast
    drop
    add
    rename           last of the tensors, so that every edit but an addition uses the names of the source
    set-config
    set-metadata     GGUF files, which have no other edit

Edits of a kind to one tensor become one: exponents add up, equal casts are one cast. A tensor that is dropped has no
other edit, and a finding about it is mended by the drop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from gemma_doctor.examination import Examination
from gemma_doctor.plans import (
    Add,
    Cast,
    Clamp,
    Drop,
    Edit,
    Left,
    Reason,
    Rename,
    Scale,
    ScaleGain,
    SetConfig,
    SetMetadata,
    ZeroNonfinite,
)
from gemma_doctor.records import Exactness, Scalar
from gemma_doctor.repair.evidence.case import Mend, left

__all__ = ["Merged", "merge"]

_ORDER: tuple[type[Edit], ...] = (
    *(ZeroNonfinite, Clamp, Scale, ScaleGain, Cast),
    *(Drop, Add, Rename, SetConfig, SetMetadata),
)
_EXACTNESS: tuple[Exactness, ...] = ("exact", "eps", "rounded", "lossy")

_Key: TypeAlias = "tuple[type[Edit], str | tuple[str, ...]]"
_Edits: TypeAlias = "dict[_Key, Edit]"


@dataclass(frozen=True, slots=True)
class Merged:
    """What several mends come to.

    Attributes:
        edits: In the order in which they are carried out.
        left: The findings whose mend another one forbids.
        dropped: Names of the tensors that are left out.
    """

    edits: tuple[Edit, ...]
    left: tuple[Left, ...]
    dropped: frozenset[str]


def merge(mends: Sequence[Mend], exam: Examination) -> Merged:
    """Merge the mends of a plan.

    Args:
        mends: In the order of the passes: where two want different dtypes for a tensor, the first one wins.
        exam: The examined checkpoint.
    """
    planned = [edit for mend in mends for edit in mend.edits]
    dropped = frozenset(edit.tensor for edit in planned if isinstance(edit, Drop))
    scaled = {edit.tensor for edit in planned if isinstance(edit, Scale | ScaleGain)}
    edits: _Edits = {}
    stays: list[Left] = []
    for mend in mends:
        wanted = [edit for edit in mend.edits if isinstance(edit, Drop) or _key(edit)[1] not in dropped]
        clashes = {
            edit.tensor: why for edit in wanted if isinstance(edit, Cast) and (why := _clash(edit, edits, scaled))
        }
        if mend.finding is not None and mend.finding.tensor in clashes:
            stays.append(left(mend.finding, clashes[mend.finding.tensor]))
            continue
        for edit in wanted:
            if not isinstance(edit, Cast) or edit.tensor not in clashes:
                edits[_key(edit)] = _together(edits.get(_key(edit)), edit)
    return Merged(tuple(_in_order(_settled(edits, exam), exam)), tuple(stays), dropped)


def _key(edit: Edit) -> _Key:
    """What an edit changes, and how."""
    match edit:
        case SetConfig():
            return type(edit), edit.path
        case SetMetadata():
            return type(edit), (edit.file, edit.key)
        case _:
            return type(edit), edit.tensor


def _clash(edit: Cast, edits: Mapping[_Key, Edit], scaled: set[str]) -> str | None:
    """Why a tensor cannot be cast in this plan."""
    other = edits.get(_key(edit))
    if isinstance(other, Cast) and other.dtype != edit.dtype:
        return f"the pass {other.pass_name} stores it as {other.dtype}, not {edit.dtype}, in the same plan"
    if edit.dtype == "F16" and edit.tensor in scaled:
        return (
            "it is scaled in the same plan, so what float16 would lose is not counted yet: repair the output once more"
        )
    return None


def _together(first: Edit | None, second: Edit) -> Edit:
    """Two edits of a kind to one tensor as one."""
    if first is None:
        return second
    exactness = max(first.exactness, second.exactness, key=_EXACTNESS.index)
    reason = _both(first.reason, second.reason)
    if (isinstance(first, Scale) and isinstance(second, Scale)) or (
        isinstance(first, ScaleGain) and isinstance(second, ScaleGain)
    ):
        return replace(first, exponent=first.exponent + second.exponent, exactness=exactness, reason=reason)
    return replace(first, exactness=exactness, reason=reason)


def _both(first: Reason, second: Reason) -> Reason:
    """Both reasons; numbers of the same name are numbered."""
    if first == second:
        return first
    evidence: dict[str, Scalar] = dict(first.evidence)
    for key, value in second.evidence.items():
        again = sum(known == key or known.startswith(f"{key} (") for known in evidence)
        evidence[f"{key} ({again + 1})" if again else key] = value
    rule = "" if second.rule == first.rule else f"{second.rule}: "
    return Reason(first.rule, f"{first.message} {rule}{second.message}", evidence)


def _settled(edits: Mapping[_Key, Edit], exam: Examination) -> Iterable[Edit]:
    """The edits once each knows of the others: an added tensor is stored and named like its neighbour."""
    renamed = any(isinstance(edit, Rename) for edit in edits.values())
    for edit in edits.values():
        if isinstance(edit, Add):
            cast = edits.get((Cast, edit.beside))
            dtype = cast.dtype if isinstance(cast, Cast) else edit.dtype
            yield replace(edit, dtype=dtype, tensor=exam.canonical(edit.tensor) if renamed else edit.tensor)
        elif not isinstance(edit, Scale | ScaleGain) or edit.exponent:
            yield edit


def _in_order(edits: Iterable[Edit], exam: Examination) -> list[Edit]:
    positions = {name: index for index, name in enumerate(exam.checkpoint.tensors)}

    def place(edit: Edit) -> tuple[int, int]:
        name = edit.beside if isinstance(edit, Add) else _key(edit)[1]
        return _ORDER.index(type(edit)), positions.get(name, len(positions)) if isinstance(name, str) else 0

    return sorted(edits, key=place)
