"""Weights in GGUF's quantised types, measured as the float32 values that the gguf package makes of them.

The package decodes all but the simplest types, which :mod:`.blocks` decodes to the same bits in a tenth of the time.

They are decoded a block of some hundred thousand elements at a time, so memory does not grow with the tensor. The
blocks of :mod:`.geometry` are whole rows, or 2**18 elements of a long one; both are whole quantisation blocks, since
GGUF's lie along the rows and have a power of two of elements, 256 at most.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from gemma_doctor.kernels.blocks import DECODERS, LENGTH

__all__ = ["decode", "decode_by_package", "packed_bytes", "why_undecodable"]


def decode(
    blocks: npt.NDArray[np.uint8], dtype: str, room: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """The values of whole quantisation blocks.

    Args:
        blocks: Their bytes, shape (bytes,).
        dtype: Their type as GGUF names it; one that :func:`why_undecodable` does not refuse.
        room: Where the values may go, shape (elements or more,).

    Returns:
        The values, shape (elements,).
    """
    decoder = DECODERS.get(dtype)
    if decoder is None:
        return decode_by_package(blocks, dtype)
    elements = blocks.size // packed_bytes(LENGTH, dtype) * LENGTH
    values = np.empty(elements, np.float32) if room is None else room[:elements]
    decoder(blocks, _halves(), values)
    return values


@cache
def _halves() -> npt.NDArray[np.float32]:
    """The value of each float16, by its bits."""
    with np.errstate(invalid="ignore"):  # NaNs that signal
        return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def decode_by_package(blocks: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """The same by the gguf package, which knows more types."""
    from gguf.constants import GGMLQuantizationType  # noqa: PLC0415  # needed for GGUF only
    from gguf.quants import dequantize  # noqa: PLC0415

    # A stranger's scales may be inf or NaN: what comes of them is counted, and is no news for standard error.
    with np.errstate(all="ignore"):
        values: npt.NDArray[np.float32] = dequantize(blocks, GGMLQuantizationType[dtype])
    return values


def packed_bytes(elements: int, dtype: str) -> int:
    """Bytes of so many elements, which are whole quantisation blocks."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415

    block, nbytes = map(int, GGML_QUANT_SIZES[GGMLQuantizationType[dtype]])
    return elements // block * nbytes


@cache
def why_undecodable(dtype: str) -> str | None:
    """Why tensors of this type cannot be measured; None where the gguf package decodes it."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415

    if dtype not in GGMLQuantizationType.__members__:
        return f"dtype {dtype} is unknown to this version"
    nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]][1]
    try:
        decode(np.zeros(nbytes, np.uint8), dtype)
    except NotImplementedError:
        return f"the installed gguf package cannot decode {dtype}"
    return None
