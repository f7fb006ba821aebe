"""GGUF files: names of their own, and what their metadata says of layers that share KV.

Only that is declared which holds whatever the converter did to the weights: roles by name, shared KV, and the rows that
copy the pad token's. No tensor is expected and no range is proved: a converter stacks and permutes tensors and may have
added 1 to gains (Gemma 3's, not Gemma 3n's). Names: ``MODEL_TENSORS`` of the gguf package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

from gemma_doctor.architectures.base import Model, SharedKV
from gemma_doctor.architectures.config import MAX_REPEATS
from gemma_doctor.checkpoint.gguf_values import Value
from gemma_doctor.errors import HeaderError
from gemma_doctor.tensors import Role, TensorInfo

__all__ = ["EMBEDDING", "PER_LAYER_EMBEDDING", "identify", "role", "shared_kv_key"]

EMBEDDING = "token_embd.weight"
PER_LAYER_EMBEDDING = "per_layer_token_embd.weight"
"""The two tables of Gemma 3n."""

_FAMILIES = ("gemma3", "gemma3n")
_KEPT = ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight")
_FULL_ATTENTION_EVERY = 5  # layers 4, 9, 14 … of Gemma 3n, where no pattern is stored
_TABLE = re.compile(r"(^|[._])(token|per_layer_token|position|token_types?)_embd$")


def identify(metadata: Mapping[str, Value]) -> Model:
    """The model that the metadata of a GGUF file describes.

    Args:
        metadata: Its values by key.

    Raises:
        HeaderError: If a number that decides over layers is out of range.
    """
    family = _content(metadata, "general.architecture")
    if family not in _FAMILIES:
        return Model(family="generic", role=role)
    return Model(family=str(family), role=role, shared_kv=_shared_kv(metadata, str(family)))


def shared_kv_key(metadata: Mapping[str, Value]) -> str:
    """The key that says how many layers at the end reuse the keys and values of an earlier one."""
    return f"{_content(metadata, 'general.architecture')}.attention.shared_kv_layers"


def role(tensor: TensorInfo) -> Role:
    """What a tensor does, as its name and shape tell.

    Args:
        tensor: Name, dtype and shape.
    """
    module, _, leaf = tensor.name.rpartition(".")
    if leaf == "bias":
        return "bias"
    if leaf != "weight" or not tensor.shape:
        return "other"
    if not tensor.shape[1:]:
        return "norm" if "norm" in module else "other"
    if _TABLE.search(module):
        return "embedding"
    return "conv" if "conv" in module or "patch_embd" in module else "linear"


def _shared_kv(metadata: Mapping[str, Value], family: str) -> dict[str, SharedKV]:
    """The tensors that a sharing layer holds and does not use; llama.cpp wants them in every layer."""
    layers = _number(metadata, f"{family}.block_count", MAX_REPEATS)
    sharing = _number(metadata, shared_kv_key(metadata), layers)
    sliding = _pattern(metadata, f"{family}.attention.sliding_window_pattern", layers)
    last = {kind: layer for layer, kind in enumerate(sliding[: layers - sharing])}
    return {
        f"blk.{layer}.{name}": SharedKV(layer, last[sliding[layer]])
        for layer in range(layers - sharing, layers)
        if sliding[layer] in last
        for name in _KEPT
    }


def _pattern(metadata: Mapping[str, Value], key: str, layers: int) -> tuple[bool, ...]:
    """Which layers slide."""
    stored = _content(metadata, key)
    if isinstance(stored, tuple) and len(stored) == layers:
        return tuple(map(bool, stored))
    return tuple((layer + 1) % _FULL_ATTENTION_EVERY != 0 for layer in range(layers))


def _number(metadata: Mapping[str, Value], key: str, most: int) -> int:
    """A whole number, whatever its type: older converters wrote some as FLOAT32. 0 where there is none."""
    value = metadata.get(key)
    if value is None:
        return 0
    number = value.content
    if not isinstance(number, int | float) or not 0 <= number <= most or number != int(number):
        _refuse(key, value, most)
    return int(number)


def _content(metadata: Mapping[str, Value], key: str) -> object:
    value = metadata.get(key)
    return None if value is None else value.content


def _refuse(key: str, value: Value, most: int) -> NoReturn:
    shown = repr(value.content)[:60]
    raise HeaderError(
        f"the GGUF metadata says {key} = {shown} ({value.type}); it must be a whole number from 0 to {most:,}. "
        "Have the file converted anew."
    )
