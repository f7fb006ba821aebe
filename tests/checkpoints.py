"""Sick and healthy checkpoints, built in code: no torch, no download, a few MB.

A checkpoint is a mapping from names to NumPy arrays (stored in their own dtype) or :class:`Raw` tensors (bytes of any
safetensors dtype). ``write`` puts it on disk through the official writer; the ``plant_*`` functions make it sick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import TensorSpec, serialize_file

from gemma_doctor import demo
from gemma_doctor.architectures import identify

Array: TypeAlias = npt.NDArray[Any]
Config: TypeAlias = Mapping[str, Any]

WRITER_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BOOL": "bool",
    **{f"{kind}{bits}": f"{'u' * (kind == 'U')}int{bits}" for kind in "IU" for bits in (8, 16, 32, 64)},
}
"""safetensors dtype -> what the official writer calls it."""

STORED = {name: dtype for dtype, name in WRITER_NAMES.items() if dtype != "BF16" and "F8" not in dtype}
"""NumPy dtype -> safetensors dtype."""

PUBLISHED = demo.PUBLISHED
"""The largest convolution weights of Gemma 3n that were published, by their absolute maxima."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A tensor as its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Tensors: TypeAlias = Mapping[str, "Array | Raw"]


def bfloat16(values: npt.ArrayLike) -> Raw:
    """Numbers as bfloat16: the upper half of a float32, rounded to nearest, ties to even; NaN stays NaN."""
    array = np.ascontiguousarray(values, np.float32)
    return Raw("BF16", array.shape, demo.bfloat16(array).tobytes())


def as_raw(tensor: Array | Raw) -> Raw:
    """An array as its bytes, in its own dtype."""
    return tensor if isinstance(tensor, Raw) else Raw(STORED[tensor.dtype.name], tensor.shape, tensor.tobytes())


def in_bfloat16(tensors: Mapping[str, Array]) -> dict[str, Array | Raw]:
    """Every array as bfloat16."""
    return {name: bfloat16(array) for name, array in tensors.items()}


def write(
    folder: Path,
    tensors: Tensors,
    config: Config | None = None,
    *,
    shards: int = 1,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint: ``model.safetensors``, or shards and their index; ``config.json`` beside it.

    Args:
        folder: Where to; made if need be.
        tensors: Name -> array or raw tensor.
        config: Content of ``config.json``; None for no such file.
        shards: Number of files.
        metadata: Each header's ``__metadata__``; ``{"format": "pt"}`` if None, and ``{}`` writes none.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raws = {name: as_raw(tensor) for name, tensor in tensors.items()}
    headers = {"format": "pt"} if metadata is None else dict(metadata)
    weight_map: dict[str, str] = {}
    for index in range(shards):
        names = list(raws)[index * len(raws) // shards : (index + 1) * len(raws) // shards]
        file = "model.safetensors" if shards == 1 else f"model-{index + 1:05}-of-{shards:05}.safetensors"
        _write_file(folder / file, {name: raws[name] for name in names}, headers)
        weight_map |= dict.fromkeys(names, file)
    if shards > 1:
        total = sum(len(raw.data) for raw in raws.values())
        index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_file, indent=2))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def _write_file(path: Path, raws: Mapping[str, Raw], metadata: dict[str, str]) -> None:
    buffers = {name: np.frombuffer(raw.data or b"\0", np.uint8) for name, raw in raws.items()}
    specs = {
        name: TensorSpec(
            dtype=WRITER_NAMES[raw.dtype],
            shape=list(raw.shape),
            data_ptr=buffers[name].ctypes.data,
            data_len=len(raw.data),
        )
        for name, raw in raws.items()
    }
    serialize_file(specs, path, metadata or None)


def tiny_gemma3_config() -> dict[str, Any]:
    """A Gemma 3 text model of two layers, 16 channels wide."""
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "dtype": "bfloat16",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 64,
    }


def tiny_gemma2_config() -> dict[str, Any]:
    """The same as a Gemma 2."""
    return {**tiny_gemma3_config(), "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}


def tiny_gemma3_multimodal_config() -> dict[str, Any]:
    """That Gemma 3 with an image encoder of two layers."""
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "dtype": "bfloat16",
        "mm_tokens_per_image": 4,
        "text_config": _section(tiny_gemma3_config()),
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_use_head": False,
        },
    }


def tiny_gemma3n_text_config() -> dict[str, Any]:
    """A Gemma 3n text model of six layers, of which the last two share KV with layers 2 and 3."""
    return {
        "architectures": ["Gemma3nForCausalLM"],
        "model_type": "gemma3n_text",
        "dtype": "bfloat16",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "laurel_rank": 4,
        "hidden_size_per_layer_input": 4,
        "vocab_size": 72,
        "vocab_size_per_layer_input": 64,
    }


def tiny_gemma3n_config() -> dict[str, Any]:
    """The same with all 548 tensors of the image encoder, a sixteenth as wide, and an audio tower of two layers."""
    return {
        "architectures": ["Gemma3nForConditionalGeneration"],
        "model_type": "gemma3n",
        "dtype": "bfloat16",
        "image_token_id": 65,
        "audio_token_id": 69,
        "text_config": _section(tiny_gemma3n_text_config()),
        "vision_config": {"model_args": {"channel_multiplier": 0.0625}, "vocab_offset": 64, "vocab_size": 4},
        "audio_config": {
            "vocab_offset": 68,
            "vocab_size": 4,
            "hidden_size": 16,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 2,
            "input_feat_size": 16,
            "sscp_conv_channel_size": [8, 4],
        },
    }


def _section(config: Config) -> dict[str, Any]:
    """A text model's config as the text section of a multimodal one."""
    return {key: value for key, value in config.items() if key not in {"architectures", "dtype"}}


def healthy(config: Config, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor that the architecture needs, with numbers as a sound initialisation would give them.

    Tensors that may be absent are: the k/v of layers that share KV, a tied head. The stem bias is there, and zero.
    """
    rng = np.random.default_rng(seed)
    expected = identify(config).expected
    return {
        name: demo.sound(tensor, rng) for name, tensor in expected.items() if tensor.need in {"required", "stem-bias"}
    }


def plant(tensors: Tensors, name: str, value: float, index: int = 0) -> dict[str, Array | Raw]:
    """The checkpoint with one element of one array replaced."""
    sick = np.array(_array(tensors, name))
    sick.reshape(-1)[index] = value
    return {**tensors, name: sick}


def plant_rows(tensors: Mapping[str, Array], factors: Mapping[str, float], rows: int | None = 4) -> dict[str, Array]:
    """The checkpoint with the first rows (output channels; None for all) of some arrays multiplied."""
    sick = {name: np.array(tensors[name]) for name in factors}
    for name, array in sick.items():
        array[:rows] *= array.dtype.type(factors[name])
    return {**tensors, **sick}


def plant_published(tensors: Tensors) -> dict[str, Array | Raw]:
    """The checkpoint with the five published maxima in their convolutions, in the first element of each."""
    for name, value in PUBLISHED.items():
        tensors = plant(tensors, name, value)
    return dict(tensors)


def plant_shared_kv(tensors: Tensors, config: Config, value: float = 0.0) -> dict[str, Array | Raw]:
    """The checkpoint with the k/v tensors of the layers that share KV, filled with one value."""
    model = identify(config)
    shared = {name: np.full(model.expected[name].shape, value, np.float32) for name in model.shared_kv}
    return {**tensors, **shared}


def with_dtype(tensors: Tensors, name: str, dtype: npt.DTypeLike) -> dict[str, Array | Raw]:
    """The checkpoint with one array cast to another NumPy dtype."""
    return {**tensors, name: _array(tensors, name).astype(dtype)}


def without(tensors: Tensors, *names: str) -> dict[str, Array | Raw]:
    """The checkpoint without some tensors."""
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def renamed(tensors: Tensors, old: str, new: str) -> dict[str, Array | Raw]:
    """The checkpoint with one prefix of names replaced by another."""
    return {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in tensors.items()}


def _array(tensors: Tensors, name: str) -> Array:
    tensor = tensors[name]
    if isinstance(tensor, Raw):
        raise TypeError(f"{name} is stored as raw {tensor.dtype} bytes: plant before it is converted")
    return tensor
