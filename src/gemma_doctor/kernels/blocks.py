"""GGUF's simplest quantised blocks, decoded by compiled loops: Q4_0, Q4_1 and Q8_0, 32 elements a block.

The gguf package decodes them in NumPy, in a dozen passes. Here it is one, without Python's lock, and the values are the
package's to the last bit (a property test compares them on arbitrary bytes): the same float32 operations in the same
order. Source of the layouts: ``block_q4_0``, ``block_q4_1`` and ``block_q8_0`` of ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gemma_doctor.kernels.jit import jit

__all__ = ["DECODERS", "LENGTH"]

Decoder: TypeAlias = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float32]], None]
"""Blocks (bytes,), the value of each float16 (65536,), and where the values go (elements,)."""

LENGTH = 32
"""Elements in a block."""


@jit
def _q4_0(blocks: npt.NDArray[np.uint8], halves: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
    """A float16 scale, then 16 bytes: low nibbles are the first 16 elements, high ones the others; less 8."""
    for index in range(out.size // LENGTH):
        at, to = 18 * index, LENGTH * index
        scale = halves[blocks[at] | blocks[at + 1] << 8]
        for place in range(16):
            byte = blocks[at + 2 + place]
            out[to + place] = scale * np.float32(np.int8(byte & 15) - np.int8(8))
            out[to + 16 + place] = scale * np.float32(np.int8(byte >> 4) - np.int8(8))


@jit
def _q4_1(blocks: npt.NDArray[np.uint8], halves: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
    """A float16 scale and a float16 minimum, then nibbles as in Q4_0."""
    for index in range(out.size // LENGTH):
        at, to = 20 * index, LENGTH * index
        scale = halves[blocks[at] | blocks[at + 1] << 8]
        least = halves[blocks[at + 2] | blocks[at + 3] << 8]
        for place in range(16):
            byte = blocks[at + 4 + place]
            out[to + place] = scale * np.float32(byte & 15) + least
            out[to + 16 + place] = scale * np.float32(byte >> 4) + least


@jit
def _q8_0(blocks: npt.NDArray[np.uint8], halves: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
    """A float16 scale, then 32 signed bytes."""
    for index in range(out.size // LENGTH):
        at, to = 34 * index, LENGTH * index
        scale = halves[blocks[at] | blocks[at + 1] << 8]
        for place in range(LENGTH):
            out[to + place] = scale * np.float32(np.int8(blocks[at + 2 + place]))


DECODERS: dict[str, Decoder] = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0}
