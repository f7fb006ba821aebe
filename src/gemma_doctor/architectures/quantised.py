"""Quantised weights: what their quantisers write beside and in place of a module's ``weight``.

The names are those of bitsandbytes (``weight.absmax``, ``weight.quant_state.bitsandbytes__nf4``), GPTQ and AWQ
(``qweight``, ``qzeros``, ``scales``, ``g_idx``), compressed-tensors (``weight_packed``, ``weight_scale``,
``weight_shape``) and float8 with scales by block (``weight_scale_inv``). Packed weights have other shapes than the
architecture's, and scales are no weights: nothing is expected, and their dtypes are the quantiser's business.
"""

from __future__ import annotations

import re

from gemma_doctor.architectures.base import Model
from gemma_doctor.architectures.config import Section
from gemma_doctor.architectures.generic import guess_role
from gemma_doctor.tensors import Role, TensorInfo

__all__ = ["declare", "is_quantised"]

_BESIDE = re.compile(
    r"\.(?:qweight|qzeros|scales|g_idx|SCB|weight_format"
    r"|weight\.(?:(?:nested_)?absmax|(?:nested_)?quant_map|quant_state\.\w+)"
    r"|(?:weight|input|output|k|v)_(?:packed|scale(?:_inv)?|global_scale|zero_point|shape|g_idx))$"
)


def is_quantised(config: Section) -> bool:
    """Whether a quantiser wrote the weights."""
    return config.values.get("quantization_config") is not None


def declare() -> Model:
    """A model of which nothing is expected, and whose scales are no weights."""
    return Model(family="generic", role=_role)


def _role(tensor: TensorInfo) -> Role:
    stored = tensor.dtype.startswith("F8")  # a weight only after its scale has been multiplied in
    return "other" if stored or _BESIDE.search(tensor.name) else guess_role(tensor)
