"""Quantised weights: what their quantisers write beside and in place of a module's ``weight``.

The names are those of bitsandbytes 0.50 (``weight.absmax``, ``weight.quant_state.bitsandbytes__nf4``, ``SCB``), GPTQ
and AWQ (``qweight``, ``qzeros``, ``scales``, ``g_idx``), compressed-tensors 0.20 (``weight_packed``, ``weight_scale``,
``weight_global_scale``, ``weight_shape``) and transformers' float8 with scales by block (``weight_scale_inv``). Packed
weights have other shapes than the architecture's, and scales are no weights: nothing is expected, and their dtypes are
the quantiser's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gemma_doctor.architectures.base import Model
from gemma_doctor.architectures.config import Section
from gemma_doctor.architectures.generic import guess_role
from gemma_doctor.tensors import Role, TensorInfo

__all__ = ["declare", "is_quantised"]

_PACKED = re.compile(
    r"\.(?:qweight|SCB|weight_packed|weight_scale(?:_inv)?|weight\.(?:absmax|quant_state\.bitsandbytes__\w+))$"
)
_BESIDE = re.compile(
    r"\.(?:qweight|qzeros|g_idx|SCB|weight_format|weight_(?:packed|shape|g_idx)"
    r"|weight\.(?:(?:nested_)?absmax|(?:nested_)?quant_map|quant_state\.\w+)"
    r"|(?:\w+_)?(?:scales?(?:_inv|_2)?|zero_points?))$"
)


def is_quantised(config: Section, names: Iterable[str]) -> bool:
    """Whether a quantiser wrote the weights: the config says so, or names that nobody else gives.

    Args:
        config: The config; AutoGPTQ's first versions wrote another file instead.
        names: Names of the tensors on disk.
    """
    return config.values.get("quantization_config") is not None or any(map(_PACKED.search, names))


def declare() -> Model:
    """A model of which nothing is expected, and whose scales are no weights."""
    return Model(family="generic", role=_role, as_stored=_as_stored)


def _role(tensor: TensorInfo) -> Role:
    return "other" if _is_float8(tensor) or _BESIDE.search(tensor.name) else guess_role(tensor)


def _as_stored(tensor: TensorInfo) -> bool:
    """Float8 weights, and scales in float32, which bitsandbytes and vLLM (``create_weights`` of its schemes) keep."""
    return _is_float8(tensor) or (tensor.dtype == "F32" and _BESIDE.search(tensor.name) is not None)


def _is_float8(tensor: TensorInfo) -> bool:
    return tensor.dtype.startswith("F8")  # a weight only after its scale has been multiplied in
