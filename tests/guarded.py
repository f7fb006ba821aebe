"""What the tests of the guards share: models of planted checkpoints, and how far their answers lie from float32's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from checkpoints import (
    PUBLISHED,
    Array,
    healthy,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    write,
)
from tiny_models import ENCODER, encoder, load
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

CONFIGS = {
    "gemma3": tiny_gemma3_config(),
    "gemma3 with images": tiny_gemma3_multimodal_config(),
    "gemma3n": tiny_gemma3n_config(),
}

LOUD = {
    "gemma3": {
        "model.layers.0.post_attention_layernorm.weight": 2.0**17,
        "model.layers.1.mlp.up_proj.weight": 2.0**12,
        "model.layers.1.mlp.gate_proj.weight": 2.0**6,
    },
    "gemma3 with images": {
        f"model.language_model.layers.{layer}.post_{part}_layernorm.weight": 2.0**17
        for layer in (0, 1)
        for part in ("attention", "feedforward")
    },
    "gemma3n": {
        "model.language_model.embed_tokens.weight": 2.0**12,
        "model.language_model.altup_projections.0.weight": 2.0**12,
        "model.vision_tower.timm_model.msfa.norm.weight": 2.0**12,
        "model.audio_tower.conformer.0.lconv1d.depthwise_conv1d.weight": 2.0**14,
        "model.audio_tower.conformer.0.lconv1d.linear_start.weight": 2.0**6,
        "model.audio_tower.subsample_conv_projection.conv_1.conv.weight": 2.0**16,
    },
}
"""Factors that carry the residual stream, a product, AltUp's squares or the soft tokens beyond float16's range."""

BLOCK = "blocks.2.9."
PLANTED = {
    "sound": {},
    "published": {name.removeprefix(ENCODER): 2.0**9 for name in PUBLISHED},
    "stem": {"conv_stem.conv.weight": 2.0**11},
    "first in a block": {f"{BLOCK}norm.weight": 2.0**6, f"{BLOCK}attn.value.proj.weight": 2.0**9},
    "queries": {f"{BLOCK}attn.query.proj.weight": 2.0**15, f"{BLOCK}attn.key.proj.weight": 2.0**-9},
    "keys": {f"{BLOCK}attn.query.proj.weight": 2.0**-9, f"{BLOCK}attn.key.proj.weight": 2.0**15},
    "outputs": {
        "blocks.3.1.attn.value.proj.weight": 2.0**12,
        "blocks.3.1.attn.output.proj.weight": 2.0**8,
        "blocks.3.1.layer_scale.gamma": 2.0**-12,
    },
}
"""Factors of some tensors' first four rows; of whole tensors for the last three."""


def built(tensors: Mapping[str, Array], config: Mapping[str, Any]) -> Any:  # noqa: ANN401  # a class of transformers
    """A model with these weights, in float32."""
    with TemporaryDirectory() as folder:
        return load(write(Path(folder) / "model", tensors, dict(config)), torch.float32).model


def planted(model: Any, factors: Mapping[str, float], rows: int | None = None) -> Any:  # noqa: ANN401
    """A copy of a model with the first rows (None for all) of some parameters multiplied."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, factor in factors.items():
            copied.get_parameter(name)[:rows] *= factor
    return copied


@cache
def sound(name: str) -> Any:  # noqa: ANN401  # a class of transformers
    """A healthy model in float32, always the same: change copies of it."""
    config = {**CONFIGS[name], "dtype": "float32"}
    return built(dict(healthy(config)), config)


def loud(name: str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """One that float16 breaks."""
    return planted(sound(name), LOUD[name]).to(dtype)


def tower(planting: str, dtype: torch.dtype) -> Any:  # noqa: ANN401  # a class of timm
    """The image encoder with one of these plantings."""
    rows = None if planting in {"queries", "keys", "outputs"} else 4
    return planted(encoder(sound("gemma3n")), PLANTED[planting], rows).to(dtype)


def as_published(dtype: torch.dtype) -> Any:  # noqa: ANN401  # a class of timm
    """The image encoder with the published largest magnitudes of its weights."""
    whole = sound("gemma3n")
    factors = {name: value / float(whole.get_parameter(name).abs().max()) for name, value in PUBLISHED.items()}
    return encoder(planted(whole, factors)).to(dtype)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The Euclidean distance, as a share of the second one's length; NaN where something is not finite."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


class Infinities(TorchDispatchMode):  # type: ignore[misc]  # torch counts as untyped
    """Counts operations, forward and backward, that give infinities or NaN while it lasts.

    Those of scalars are limits, such as a clipping of 1e10 in float16, and no results.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            watched = isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dim()
            if watched and "empty" not in str(func) and not bool(tensor.isfinite().all()):
                self.seen.append(str(func))
        return result


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    """Those that the last backward pass left."""
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
