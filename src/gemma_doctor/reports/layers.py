"""The largest magnitude in each layer, by role: the cells of a heat map."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from gemma_doctor.reports.order import place
from gemma_doctor.tensors import MeasuredTensor, Role

__all__ = ["LEVELS", "Cell", "Stack", "stacks"]

LEVELS = (2.0**-4, 2.0**-2, 1.0, 4.0, 16.0, 64.0, 256.0, 32752.0)
"""Where one level of a cell ends and the next begins: steps of four, then what norms square, and half of float16."""

ROLES: tuple[Role, ...] = get_args(Role)
_COLUMNS = 64  # of a stack; more layers are folded


@dataclass(frozen=True, slots=True)
class Cell:
    """The tensors of one role in one layer, or in a few neighbouring ones.

    Attributes:
        layers: Label of the layers.
        tensors: Their positions in model order; empty where there are none.
        absmax: Largest finite magnitude; None where nothing is finite.
        worst: Name of the tensor that holds it.
        nonfinite: NaNs and infinities.
    """

    layers: str
    tensors: tuple[int, ...]
    absmax: float | None
    worst: str
    nonfinite: int

    @property
    def level(self) -> int | None:
        """Index of the level among :data:`LEVELS`' intervals; None for zeros only."""
        return bisect_right(LEVELS, self.absmax) if self.absmax else None


@dataclass(frozen=True, slots=True)
class Stack:
    """Numbered layers under one name.

    Attributes:
        name: What they are numbered in; empty for tensors outside of all layers.
        layers: Labels of the columns.
        rows: Each role that occurs, with a cell for each column.
    """

    name: str
    layers: tuple[str, ...]
    rows: tuple[tuple[Role, tuple[Cell, ...]], ...]


_Placed = tuple[int, MeasuredTensor]


def stacks(tensors: Sequence[MeasuredTensor]) -> list[Stack]:
    """The stacks of layers, in model order.

    Law: every tensor lies in exactly one cell.

    Args:
        tensors: In model order.
    """
    held: dict[str, dict[int, list[_Placed]]] = {}
    for position, tensor in enumerate(tensors):
        where = place(tensor.info.name)
        name, layer = ("", 0) if where.layer is None else (where.stack or "layers", where.layer)
        held.setdefault(name, {}).setdefault(layer, []).append((position, tensor))
    outside = held.pop("", None)
    found = [_stack(name, layers) for name, layers in held.items()]
    return [*found, _stack("", outside)] if outside else found


def _stack(name: str, layers: dict[int, list[_Placed]]) -> Stack:
    columns = {_label(column): [item for layer in column for item in layers[layer]] for column in _columns(layers)}
    roles = [role for role in ROLES if any(tensor.role == role for held in columns.values() for _, tensor in held)]
    rows = ((role, tuple(_cell(label, held, role) for label, held in columns.items())) for role in roles)
    return Stack(name, tuple(columns), tuple(rows))


def _columns(layers: Iterable[int]) -> list[list[int]]:
    """The layers by number, folded into as many columns as are shown."""
    ordered = sorted(layers)
    size = -(-len(ordered) // _COLUMNS)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _label(column: Sequence[int]) -> str:
    return str(column[0]) if len(column) == 1 else f"{column[0]} to {column[-1]}"


def _cell(layers: str, column: Iterable[_Placed], role: Role) -> Cell:
    held = [(position, tensor) for position, tensor in column if tensor.role == role]
    finite = [(tensor.stats.absmax, tensor.info.name) for _, tensor in held if tensor.stats.absmax is not None]
    absmax, worst = max(finite, default=(None, ""))
    nonfinite = sum(tensor.stats.nan + tensor.stats.inf for _, tensor in held)
    return Cell(layers, tuple(position for position, _ in held), absmax, worst, nonfinite)
