"""Everything else: no tensor is expected, and a tensor's role is guessed from its name and shape."""

from __future__ import annotations

import re

from gemma_doctor.architectures.base import Model
from gemma_doctor.architectures.config import Section, config_dtype
from gemma_doctor.tensors import Role, TensorInfo

__all__ = ["declare", "guess_role", "rows_are_outputs"]

_LONGEST_KERNEL = 64
"""Kernel positions along one axis above which a rank-3 weight without "conv" in its name is none."""

_BIAS = re.compile(r"(^|_)bias(_|$)|^beta$")
_WEIGHT = re.compile(r"(^|_)weight(_|$)|^kernel$|^w$")
_NORM = re.compile(r"norm|(^|_)(bn|ln)(\d|_|$)|^gamma$")
_EMBEDDING = re.compile(r"embed|(^|_)emb(_|$)|^(wte|wpe|shared)$")
_PROJECTION = re.compile(r"proj|linear|dense|fc\d*$|mapping|embed_out")
_EXPERTS = re.compile(r"expert|(^|[._])moe([._]|$)|switch_mlp")
_INPUTS_FIRST = re.compile(r"transpose|deconv|convtr|(^|\.)c_(attn|proj|fc)\.")
_NUMBERS = ("F", "BF")


def declare(config: Section) -> Model:
    """A model of which only the config's dtype is known."""
    return Model(family="generic", role=guess_role, dtype=config_dtype(config))


def guess_role(tensor: TensorInfo) -> Role:
    """What a tensor does, as far as its name and shape tell.

    A weight of rank three with a small kernel, or of a higher rank, is a convolution, a stack of experts is linear,
    a matrix is an embedding or linear by its module's name, a vector is a bias or, as a ``weight``, a norm's gain.

    Args:
        tensor: Name, dtype and shape.
    """
    *parents, leaf = tensor.name.lower().split(".")
    module = next((part for part in reversed(parents) if not part.isdigit()), "")
    if not tensor.dtype.startswith(_NUMBERS) or not tensor.shape:
        return "other"
    if _BIAS.search(leaf):
        return "bias"
    match len(tensor.shape):
        case 1:
            return _vector_role(module, leaf)
        case 2:
            return _matrix_role(module, leaf)
        case _:
            return _stack_role(tensor, leaf)


def rows_are_outputs(name: str) -> bool:
    """Whether a conv's or linear's first axis runs over its output channels, as far as the name tells.

    It does not in transposed convolutions, in GPT-2's ``Conv1D`` (``x @ W``), and in stacks of experts.

    Args:
        name: Name of the tensor.
    """
    lower = name.lower()
    return not _INPUTS_FIRST.search(lower) and not _EXPERTS.search(lower)


def _vector_role(module: str, leaf: str) -> Role:
    gain = _NORM.search(leaf) or (_WEIGHT.search(leaf) and not _EMBEDDING.search(module))
    return "norm" if gain and not leaf.startswith("running") else "other"


def _matrix_role(module: str, leaf: str) -> Role:
    owner = module if _WEIGHT.search(leaf) or not _EMBEDDING.search(leaf) else leaf
    if _EMBEDDING.search(owner) and not _PROJECTION.search(owner):
        return "embedding"
    return "linear" if _WEIGHT.search(leaf) or _PROJECTION.search(leaf) or "lora" in leaf else "other"


def _stack_role(tensor: TensorInfo, leaf: str) -> Role:
    name = tensor.name.lower()
    if _EXPERTS.search(name):
        return "linear"
    if not _WEIGHT.search(leaf):
        return "embedding" if _EMBEDDING.search(leaf) else "other"
    _, inputs, kernel, *more = tensor.shape
    return "conv" if more or "conv" in name or inputs == 1 or kernel <= _LONGEST_KERNEL else "other"
