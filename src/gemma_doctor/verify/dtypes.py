"""The format's names of torch's dtypes."""

from __future__ import annotations

import torch

__all__ = ["NAMES", "name_of"]

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def name_of(dtype: torch.dtype) -> str:
    """The safetensors name of a floating-point dtype; torch's own name where the format has none."""
    return NAMES.get(dtype, str(dtype).removeprefix("torch."))
