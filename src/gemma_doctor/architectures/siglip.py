"""SigLIP's vision tower, the image encoder of Gemma 3 (transformers 5.23, modeling_siglip.py)."""

from __future__ import annotations

from gemma_doctor.architectures.base import Conv, Expected, KeyLayout, Reader, Rescaling, Value
from gemma_doctor.architectures.config import Section
from gemma_doctor.architectures.expressions import (
    AfterNorm,
    Dot,
    Input,
    Linear,
    Pooled,
    Repeated,
    Row,
    Shifted,
    Slice,
    Sum,
    Unbounded,
    Within,
)
from gemma_doctor.architectures.ledger import Ledger, activated
from gemma_doctor.architectures.pieces import Tensors, embedding, layer_norm, linear

__all__ = ["hidden_size", "patch_conv", "siglip", "siglip_layouts", "siglip_rescaling", "siglip_values"]

_STREAM = "the image encoder's residual stream"

# How the parts are called on the Hub: that is the canonical layout of a decoder with this tower in front.
_LANGUAGE, _TOWER, _PROJECTOR = "language_model.model.", "vision_tower.vision_model.", "multi_modal_projector."
_HEAD = ("lm_head.", "language_model.lm_head.")


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


def siglip_layouts(title: str, skipping: str = "") -> tuple[KeyLayout, ...]:
    """The ways to name a decoder with this tower and a projector, as on the Hub first.

    Which transformers finds which names was tried with Gemma 3, 4.53.3 and 5.23.0: a missing name is initialised at
    random, with no more than a warning.

    Args:
        title: How messages call the model.
        skipping: Who else does not find the state dict's names of transformers 4.52 and later, as it follows in a
            sentence. llama.cpp: Gemma3VisionModel in convert_hf_to_gguf.py keeps vision_tower.* only.
    """
    inner, projector = ("model.language_model.", _LANGUAGE), ("model.multi_modal_projector.", _PROJECTOR)
    old = "transformers 4.53, which looks for vision_tower.vision_model.*"
    return (
        KeyLayout(f"{title}, as on the Hub", (_HEAD,)),
        KeyLayout(
            f"{title}, state dict of transformers 4.52 and later",
            (("model.vision_tower.vision_model.", _TOWER), projector, inner, _HEAD),
            stale=f"transformers before 4.52{skipping}",
        ),
        KeyLayout(
            f"{title}, saved by transformers 5 from a fresh config", (("vision_tower.", _TOWER), _HEAD), stale=old
        ),
        KeyLayout(
            f"{title}, state dict of transformers 5",
            (projector, inner, ("model.vision_tower.", _TOWER), _HEAD),
            stale=old,
        ),
    )


def patch_conv(prefix: str, config: Section) -> dict[str, Conv]:
    """The tower's only convolution: pixels after the processor's (x - 0.5) / 0.5, no norm behind it."""
    pixels = Within(1.0, config.extent("num_channels", 3), "pixels rescaled to [-1, 1]")
    taps = config.repeats("patch_size", 16) ** 2
    module = f"{prefix}embeddings.patch_embedding"
    return {f"{module}.weight": Conv(pixels, taps, depthwise=False, bias=f"{module}.bias")}


def siglip_values(prefix: str, config: Section) -> tuple[tuple[Value, ...], Input]:
    """What the tower writes in a float16 run, and what its output is made of.

    Args:
        prefix: What the names start with, such as ``"vision_tower.vision_model."``.
        config: ``vision_config``.
    """
    ledger, width = Ledger(), hidden_size(config)
    (weight, conv), *_ = patch_conv(prefix, config).items()
    patches: Input = Linear(weight, conv.source, conv.taps)
    patches = ledger.module(
        weight.removesuffix(".weight"), "conv", Shifted(f"{prefix}embeddings.patch_embedding.bias", patches)
    )
    stream: Input = Sum((patches, Row(f"{prefix}embeddings.position_embedding.weight")))
    stream = ledger.state(f"{prefix}embeddings", _STREAM, stream, module=f"{prefix}embeddings")
    for layer in range(config.repeats("num_hidden_layers", 12)):
        stream = _layer_values(ledger, config, f"{prefix}encoder.layers.{layer}", stream)
    normed = _layer_norm(ledger, f"{prefix}post_layernorm", width)
    if config.flag("vision_use_head", default=True):
        ledger.module(f"{prefix}head", "other", Unbounded("the tower's pooling head is not analysed"))
    return tuple(ledger.values), normed


def siglip_rescaling(prefix: str, config: Section, values: tuple[Value, ...]) -> Rescaling:
    """The tower's residual stream: layer norms alone read it, so that its writers may shrink together, biases too.

    Args:
        prefix: What the names start with, such as ``"vision_tower.vision_model."``.
        config: ``vision_config``.
        values: What the tower writes.
    """
    layers = [f"{prefix}encoder.layers.{layer}" for layer in range(config.repeats("num_hidden_layers", 12))]
    patches = f"{prefix}embeddings.patch_embedding"
    writers = [patches, *(f"{layer}.{part}" for layer in layers for part in ("self_attn.out_proj", "mlp.fc2"))]
    states = [value for value in values if value.stream == _STREAM]
    eps = config.number("layer_norm_eps", 1e-6, 0.0, 1.0)
    return Rescaling(
        name="SigLIP's residual stream",
        smaller=(
            f"{prefix}embeddings.position_embedding.weight",
            *(f"{writer}.{part}" for writer in writers for part in ("weight", "bias")),
        ),
        larger=(),
        values=(*(value.name for value in states), *writers),
        readers=(Reader(f"{layers[0]}.layer_norm1.weight", eps, states[0].source),),
    )


def _layer_values(ledger: Ledger, config: Section, name: str, stream: Input) -> Input:
    width, attn = hidden_size(config), f"{name}.self_attn"
    heads = config.repeats("num_attention_heads", 12)
    channels = max(1, width // heads)
    normed = _layer_norm(ledger, f"{name}.layer_norm1", width)
    query, key, value = (ledger.linear(f"{attn}.{part}_proj", normed, bias=True) for part in "qkv")
    ledger.inner(attn, "scores", "scores", Dot(Slice(query, channels), Slice(key, channels)))
    mixed = ledger.inner(attn, "mix of values", "attention", Repeated(Pooled(Slice(value, channels)), heads))
    written = ledger.linear(f"{attn}.out_proj", mixed, bias=True)
    stream = ledger.state(f"{name} (after attention)", _STREAM, Sum((stream, written)))
    normed = _layer_norm(ledger, f"{name}.layer_norm2", width)
    inner = activated(config, "hidden_act", ledger.linear(f"{name}.mlp.fc1", normed, bias=True))
    written = ledger.linear(f"{name}.mlp.fc2", inner, bias=True)
    return ledger.state(name, _STREAM, Sum((stream, written)), module=name)


def _layer_norm(ledger: Ledger, name: str, channels: int) -> Input:
    """A layer norm's output: it subtracts the mean, divides by the deviation, and adds a bias behind its gain."""
    return ledger.module(name, "norm", Shifted(f"{name}.bias", AfterNorm(f"{name}.weight", channels)))


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
