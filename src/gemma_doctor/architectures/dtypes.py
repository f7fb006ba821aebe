"""Which dtypes are numbers with a fraction, what a config calls them, and what a cast between them costs."""

from __future__ import annotations

from collections.abc import Mapping

from gemma_doctor.records import Repair
from gemma_doctor.tensors import FRACTIONS

__all__ = ["FULL_FLOATS", "STORED_AS", "cast", "is_float"]

STORED_AS: Mapping[str, str] = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""A config's name of a dtype -> the safetensors name."""

FULL_FLOATS = frozenset(STORED_AS.values())
"""Dtypes that a model is stored in as it is, unlike float8, which comes with scales beside it."""

_WIDENS = frozenset({("F16", "F32"), ("BF16", "F32"), ("F16", "F64"), ("BF16", "F64"), ("F32", "F64")})


def is_float(dtype: str) -> bool:
    """Whether a dtype holds numbers with a fraction (``"F32"``, ``"BF16"``, ``"F8_E4M3"``, GGUF's ``"Q4_K"`` …)."""
    return dtype.startswith(FRACTIONS)


def cast(stored: str, wanted: str) -> Repair:
    """The pass that stores a tensor in another full float dtype: exact where that holds every stored value."""
    return Repair("cast-dtype", "exact" if (stored, wanted) in _WIDENS else "rounded")
