"""A small sick Gemma 3n, built without torch: every tensor name of the real one, and the faults that were published.

The image encoder has all 548 tensors, a quarter as wide; text and audio are narrow and shallow. The weights are
random, as a sound initialisation would make them, and then made sick:

* the five largest convolution weights of the published table (98.0, 37.0, 34.75, 33.75, 33.75);
* all-zero k/v tensors in the layers that share KV;
* a config that says float16 above weights in bfloat16, as a real merged checkpoint has it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import TensorSpec, serialize_file

from gemma_doctor.architectures import identify
from gemma_doctor.architectures.base import Expected, Model

__all__ = ["CONFIG", "PUBLISHED", "bfloat16", "build", "sound"]

CONFIG: dict[str, Any] = {
    "architectures": ["Gemma3nForConditionalGeneration"],
    "model_type": "gemma3n",
    "dtype": "float16",
    "image_token_id": 4097,  # within the ids of images, from the tower's vocab_offset, as the real one's 262145
    "audio_token_id": 4225,
    "text_config": {
        "model_type": "gemma3n_text",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 10,
        "num_kv_shared_layers": 4,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "laurel_rank": 16,
        "hidden_size_per_layer_input": 32,
        "vocab_size": 4352,
        "vocab_size_per_layer_input": 4096,
    },
    "vision_config": {
        "model_type": "gemma3n_vision",
        "architecture": "mobilenetv5_300m_enc",
        "model_args": {"channel_multiplier": 0.25},
        "vocab_offset": 4096,
    },
    "audio_config": {
        "model_type": "gemma3n_audio",
        "hidden_size": 128,
        "conf_num_attention_heads": 4,
        "conf_num_hidden_layers": 2,
        "vocab_offset": 4224,
    },
}
"""The demo's ``config.json``."""

PUBLISHED: Mapping[str, float] = {
    "model.vision_tower.timm_model.msfa.ffn.pw_proj.conv.weight": 98.0,
    "model.vision_tower.timm_model.blocks.2.21.attn.key.down_conv.weight": 37.0,
    "model.vision_tower.timm_model.blocks.2.32.pw_exp.conv.weight": 34.75,
    "model.vision_tower.timm_model.blocks.2.30.pw_exp.conv.weight": 33.75,
    "model.vision_tower.timm_model.blocks.2.34.pw_exp.conv.weight": 33.75,
}
"""The largest convolution weights of Gemma 3n that were published, by their absolute maxima."""

SHARDS = 3
SEED = 0


def build(folder: Path) -> None:
    """Writes the sick checkpoint: three shards in bfloat16, their index, and the config.

    Args:
        folder: Where to; made if need be. Files of the same names are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = identify(CONFIG)
    tensors = dict(_sick(model))
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        part = names[shard * len(names) // SHARDS : (shard + 1) * len(names) // SHARDS]
        _write_shard(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    metadata = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def _sick(model: Model) -> Iterator[tuple[str, npt.NDArray[np.uint16]]]:
    """Every tensor of the demo as the bits of bfloat16, the faults among them."""
    rng = np.random.default_rng(SEED)
    for name, expected in model.expected.items():
        if expected.need == "tied-head":
            continue
        values = np.zeros(expected.shape, np.float32) if name in model.shared_kv else sound(expected, rng)
        if name in PUBLISHED:
            values.flat[0] = PUBLISHED[name]
        yield name, bfloat16(values)


def sound(expected: Expected, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Values as a sound initialisation would give them.

    Args:
        expected: The tensor.
        rng: Where the randomness comes from.

    Returns:
        Matrices with rows of unit length, gains near one (near zero where the module adds one), layer scales
        between 1e-5 and 1, a zero stem bias; float32.
    """
    shape = expected.shape
    if expected.need == "stem-bias":
        return np.zeros(shape, np.float32)
    if expected.module == "LayerScale2d":
        return (10.0 ** rng.uniform(-5, 0, shape)).astype(np.float32)
    noise = rng.standard_normal(shape, np.float32)
    scale, centre = 0.02, 0.0
    if expected.role in {"conv", "linear"}:
        scale = 1 / math.sqrt(math.prod(shape[1:]))
    elif expected.role in {"norm", "other"}:
        scale, centre = 0.1, 0.0 if expected.plus_one else 1.0
    return (scale * noise + centre).astype(np.float32)


def bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of bfloat16: the upper half of a float32, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[np.isnan(values)] = 0x7FC0
    return rounded


def _write_shard(path: Path, tensors: Mapping[str, npt.NDArray[np.uint16]]) -> None:
    specs = {
        name: TensorSpec(dtype="bfloat16", shape=list(bits.shape), data_ptr=bits.ctypes.data, data_len=bits.nbytes)
        for name, bits in tensors.items()
    }
    serialize_file(specs, str(path), {"format": "pt"})
