"""Tensors in model order, and what a name says of the place in the model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from gemma_doctor.tensors import MeasuredTensor

__all__ = ["Place", "in_model_order", "place", "towers"]

_NUMBER = re.compile(r"(?<![^.])([0-9]{1,6})(?![^.])")  # a whole component between dots


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the model a tensor belongs, as its name has it.

    Attributes:
        stack: What the layers are numbered in, such as ``"model.language_model.layers"``; empty outside of layers.
        layer: The layer's number; None outside of layers.
    """

    stack: str
    layer: int | None


def in_model_order(tensors: Iterable[MeasuredTensor]) -> list[MeasuredTensor]:
    """The tensors by name, layers by number: files sort layer 10 before layer 2."""
    return sorted(tensors, key=lambda tensor: _natural(tensor.info.name))


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts numeric components by value, and before words."""
    return tuple((0, int(part), "") if _NUMBER.fullmatch(part) else (1, 0, part) for part in name.split("."))


def place(name: str) -> Place:
    """The layer that the first numbers of a name mean: of ``blocks.2.21.attn``, layer 21 of ``blocks.2``."""
    parts = name.split(".")
    numeric = [_NUMBER.fullmatch(part) is not None for part in parts]
    if True not in numeric:
        return Place("", None)
    last = numeric.index(True)
    while last + 1 < len(parts) and numeric[last + 1]:
        last += 1
    return Place(".".join(parts[:last]), int(parts[last]))


def towers(tensors: Iterable[MeasuredTensor]) -> list[tuple[int, int, str]]:
    """The parts of the model among its tensors: (first position, one past the last, name).

    Parts are told apart by the first component of the name that is not the same in all of them.
    """
    names = [tensor.info.name.split(".") for tensor in tensors]
    shared = 0
    while names and all(len(parts) > shared + 1 and parts[shared] == names[0][shared] for parts in names):
        shared += 1
    found: list[tuple[int, int, str]] = []
    for name, group in groupby(parts[shared] for parts in names):
        start = found[-1][1] if found else 0
        found.append((start, start + len(list(group)), name))
    return found
