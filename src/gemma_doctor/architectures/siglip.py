"""SigLIP's vision tower, the image encoder of Gemma 3 (transformers 5.23, modeling_siglip.py)."""

from __future__ import annotations

from gemma_doctor.architectures.base import Conv, Expected, Within
from gemma_doctor.architectures.config import Section
from gemma_doctor.architectures.pieces import Tensors, embedding, layer_norm, linear

__all__ = ["hidden_size", "patch_conv", "siglip"]


def hidden_size(config: Section) -> int:
    """Channels of the tower (configuration_siglip.py)."""
    return config.extent("hidden_size", 768)


def siglip(prefix: str, config: Section) -> Tensors:
    """Every tensor of the tower.

    Args:
        prefix: What the names start with, such as ``"vision_tower.vision_model."``.
        config: ``vision_config``.
    """
    width, inner = hidden_size(config), config.extent("intermediate_size", 3072)
    tensors = _embeddings(prefix, config, width)
    for layer in range(config.repeats("num_hidden_layers", 12)):
        tensors |= _layer(f"{prefix}encoder.layers.{layer}.", width, inner)
    tensors |= layer_norm(f"{prefix}post_layernorm", width)
    if config.flag("vision_use_head", default=True):
        tensors |= _head(f"{prefix}head.", width, inner)
    return tensors


def patch_conv(prefix: str, config: Section) -> dict[str, Conv]:
    """The tower's only convolution: pixels after the processor's (x - 0.5) / 0.5, no norm behind it."""
    pixels = Within(1.0, config.extent("num_channels", 3), "pixels rescaled to [-1, 1]")
    taps = config.repeats("patch_size", 16) ** 2
    module = f"{prefix}embeddings.patch_embedding"
    return {f"{module}.weight": Conv(pixels, taps, depthwise=False, bias=f"{module}.bias")}


def _embeddings(prefix: str, config: Section, width: int) -> Tensors:
    patch = config.repeats("patch_size", 16)
    image = config.extent("image_size", 224)
    if image < patch:
        config.refuse("image_size", image, f"at least patch_size, {patch}")
    conv = f"{prefix}embeddings.patch_embedding"
    kernel = (width, config.extent("num_channels", 3), patch, patch)
    tensors = {
        f"{conv}.weight": Expected(kernel, "conv", "Conv2d"),
        f"{conv}.bias": Expected((width,), "bias", "Conv2d"),
    }
    return tensors | embedding(f"{prefix}embeddings.position_embedding", (image // patch) ** 2, width)


def _layer(prefix: str, width: int, inner: int) -> Tensors:
    tensors = layer_norm(f"{prefix}layer_norm1", width)
    for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
        tensors |= linear(f"{prefix}self_attn.{projection}", width, width, bias=True)
    return tensors | layer_norm(f"{prefix}layer_norm2", width) | _mlp(f"{prefix}mlp.", width, inner)


def _mlp(prefix: str, width: int, inner: int) -> Tensors:
    return linear(f"{prefix}fc1", inner, width, bias=True) | linear(f"{prefix}fc2", width, inner, bias=True)


def _head(prefix: str, width: int, inner: int) -> Tensors:
    """The attention pooling head, which Gemma 3 itself never uses (its configs say ``vision_use_head: false``)."""
    attention = f"{prefix}attention."
    return {
        f"{prefix}probe": Expected((1, 1, width), "other", "SiglipMultiheadAttentionPoolingHead"),
        f"{attention}in_proj_weight": Expected((3 * width, width), "linear", "MultiheadAttention"),
        f"{attention}in_proj_bias": Expected((3 * width,), "bias", "MultiheadAttention"),
        **linear(f"{attention}out_proj", width, width, bias=True),
        **layer_norm(f"{prefix}layernorm", width),
        **_mlp(f"{prefix}mlp.", width, inner),
    }
