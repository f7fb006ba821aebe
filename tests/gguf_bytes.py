"""GGUF files as bytes, sound and broken, and what two readers make of them."""

from __future__ import annotations

import io
import random
import struct
import tempfile
from pathlib import Path
from typing import TypeAlias

import numpy as np
from gguf import GGUFReader

from gemma_doctor.checkpoint.gguf_header import read_gguf_header
from gemma_doctor.errors import HeaderError

Tensors: TypeAlias = "list[tuple[str, str, tuple[int, ...], int, int]]"
"""Name, type, extents outermost first, first byte and one past the last of each tensor."""

_NUMBERS = (0, 1, 2, 3, 4, 8, 9, 31, 32, 33, 255, 256, 2**16, 2**31, 2**32 - 1, 2**32, 2**40, 2**63, 2**64 - 1)
_WIDTHS = {4: "<I", 8: "<Q"}


def _text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def _seed(*, version: int = 3) -> bytes:
    keys = (
        _text(b"general.architecture") + struct.pack("<I", 8) + _text(b"gemma3n"),
        _text(b"gemma3n.block_count") + struct.pack("<II", 4, 30),
        _text(b"gemma3n.attention.shared_kv_layers") + struct.pack("<If", 6, 10.0),
        _text(b"tokens") + struct.pack("<IIQ", 9, 8, 3) + _text(b"a") + _text(b"") + _text(b"bc"),
        _text(b"lengths") + struct.pack("<IIQ3I", 9, 4, 3, 7, 8, 9),
        _text(b"general.alignment") + struct.pack("<II", 4, 32),
    )
    entries = (
        _text(b"blk.0.attn_k.weight") + struct.pack("<IQQIQ", 2, 32, 2, 2, 0),  # Q4_0: 36 bytes
        _text(b"output_norm.weight") + struct.pack("<IQIQ", 1, 5, 0, 64),
        _text(b"none") + struct.pack("<IQIQ", 1, 0, 1, 96),
    )
    head = b"GGUF" + struct.pack("<IQQ", version, len(entries), len(keys)) + b"".join((*keys, *entries))
    return head + bytes(-len(head) % 32) + bytes(96)


SEEDS = (_seed(), _seed(version=2), b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(8))
"""Sound files to begin mutating with."""


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """The file with one to four things done to it: bits, numbers, and pieces cut, doubled or moved."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        stop = min(len(data), at + rng.choice((1, 4, 8, 12, 40)))
        match rng.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1 | 2:
                width = rng.choice((4, 8))
                number = rng.choice(_NUMBERS) & ((1 << 8 * width) - 1)
                data[at : at + width] = struct.pack(_WIDTHS[width], number)
            case 3:
                del data[at:stop]
            case 4:
                data[at:at] = data[at:stop]
            case _:
                piece = data[at:stop]
                del data[at:stop]
                to = rng.randrange(len(data) + 1)
                data[to:to] = piece
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.05 else data)


def ours(raw: bytes) -> Tensors | None:
    """What this project reads; None where it refuses the file."""
    try:
        header = read_gguf_header(io.BytesIO(raw), len(raw), "fuzz.gguf")
    except HeaderError:
        return None
    return [(tensor.name, tensor.dtype, tensor.shape, tensor.start, tensor.stop) for tensor in header.tensors]


def official(raw: bytes) -> Tensors:
    """What the gguf package reads. It has no bounds: only for files that this project has accepted.

    Raises:
        Exception: Whatever it raises where it refuses the file.
    """
    with tempfile.NamedTemporaryFile() as file, np.errstate(all="ignore"):
        file.write(raw)
        file.flush()
        reader = GGUFReader(Path(file.name))
        return [
            (
                tensor.name,
                tensor.tensor_type.name,
                tuple(int(extent) for extent in reversed(tensor.shape.tolist())),
                int(tensor.data_offset),
                int(tensor.data_offset + tensor.n_bytes),
            )
            for tensor in reader.tensors
        ]
