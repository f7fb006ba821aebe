"""GGUF files built in code, by the gguf package: small ones, and Gemma 3n's in the shape of published files."""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

Packed: TypeAlias = "tuple[str, npt.NDArray[Any]]"
"""A type's name and the bytes of a tensor, the last axis in bytes; or for plain types the values themselves."""

SHARED_KV = "gemma3n.attention.shared_kv_layers"


def inventory(model: str) -> dict[str, Any]:
    """The ``metadata`` and ``tensors`` (name, type, extents innermost first) of a published file."""
    found: dict[str, Any] = _inventories()[model]
    return found


@lru_cache(maxsize=1)
def _inventories() -> dict[str, Any]:
    packed = Path(__file__).with_name("data") / "gguf.json.xz"
    data: dict[str, Any] = json.loads(lzma.decompress(packed.read_bytes()))
    return data


def write(
    path: Path,
    tensors: Mapping[str, Packed],
    metadata: Mapping[str, tuple[GGUFValueType, Any]] | None = None,
    architecture: str = "llama",
) -> Path:
    """A GGUF file of these tensors and values, as the gguf package writes it."""
    writer = GGUFWriter(path, architecture)
    for key, (kind, value) in (metadata or {}).items():
        writer.add_key_value(key, value, kind)
    for name, (kind, values) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Any bytes as quantised blocks: NaN and inf among the scales, and numbers of every size."""
    block, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return rng.integers(0, 256, (*shape[:-1], shape[-1] // block * nbytes), dtype=np.uint8)


def values_of(path: Path) -> dict[str, tuple[str, npt.NDArray[Any]]]:
    """Every tensor's type and values, as the gguf package reads and decodes them, outermost axis first."""
    found = {}
    for tensor in GGUFReader(path).tensors:
        shape = tuple(int(extent) for extent in reversed(tensor.shape.tolist()))
        kind = tensor.tensor_type.name
        with np.errstate(all="ignore"):
            plain = kind.startswith(("I8", "I16", "I32", "I64", "F64"))
            values = tensor.data if plain else dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = (kind, values.reshape(shape))
    return found


def gemma3n(path: Path, shared_kv: tuple[GGUFValueType, Any], *, table: str = "F16", zero_shared: bool = False) -> Path:
    """A Gemma 3n E2B with the names and types of a published file, its extents cut down to a block or less.

    Args:
        path: Where it goes.
        shared_kv: Type and value of the number of layers that share KV.
        table: Type of the per-layer embeddings.
        zero_shared: Whether k and v of the layers that share KV are all zero.
    """
    rng, known = np.random.default_rng(3), inventory("gemma-3n-E2B")
    tensors: dict[str, Packed] = {}
    for name, stored, extents in known["tensors"]:
        kind = table if name == "per_layer_token_embd.weight" else stored
        shape = tuple(min(extent, 256 if axis == 0 else 4) for axis, extent in enumerate(extents))[::-1]
        tensors[name] = (kind, _packed(kind, shape, rng, zero=zero_shared and _shares(name)))
    tensors["token_embd.weight"] = ("Q6_K", _packed("Q6_K", (5, 256), rng))
    metadata = {
        key: (GGUFValueType.get_type(value) if isinstance(value, float | str) else GGUFValueType.UINT32, value)
        for key, value in known["metadata"].items()
        if not key.startswith("general.") and not isinstance(value, bool)
    }
    return write(path, tensors, {**metadata, SHARED_KV: shared_kv}, "gemma3n")


def _shares(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == "blk" and int(parts[1]) >= 20 and parts[2] in {"attn_k", "attn_v", "attn_k_norm"}


def _packed(kind: str, shape: tuple[int, ...], rng: np.random.Generator, *, zero: bool = False) -> npt.NDArray[Any]:
    """Small weights of a type, without NaN and inf."""
    if kind in {"F32", "F16"}:
        values = np.zeros(shape) if zero else rng.normal(0, 0.05, shape)
        return values.astype(np.float32 if kind == "F32" else np.float16)
    blocks = random_blocks(kind, shape, rng)
    return np.zeros_like(blocks) if zero else blocks & 0x1F  # small scales: the exponents' upper bits are clear
