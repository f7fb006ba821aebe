"""The image and audio towers of Gemma 4 (transformers 5.23, modeling_gemma4.py)."""

from __future__ import annotations

from gemma_doctor.architectures.base import Conv, Expected, Norm
from gemma_doctor.architectures.config import Section
from gemma_doctor.architectures.decoders import SANDWICH_NORMS
from gemma_doctor.architectures.expressions import AfterNorm, Input, Linear, Within
from gemma_doctor.architectures.pieces import Tensors, linear, rms_norm

__all__ = ["NORM", "audio_convs", "audio_tower", "vision_tower"]

NORM = "Gemma4RMSNorm"
"""The class of every norm, which multiplies by w."""

_SUBSAMPLE = "subsample_conv_projection."
_TAPS, _STRIDE = 3, 2

_LOG_MEL = Within(
    11.0,
    1,
    # a Hann window of 320 sums to 160, so |STFT| <= 160 for samples in [-1, 1]; a mel filter weighs at most 257 bins
    # with at most 1, and ln(160 * 257 + 0.001) < 11; from below the features stop at ln(0.001) > -7
    # (feature_extraction_gemma4.py; preemphasis and a mean per bin are off by default)
    "log-mel features of a waveform in [-1, 1]",
)


def vision_tower(prefix: str, vision: Section) -> Tensors:
    """Every tensor of the image tower.

    Args:
        prefix: What the names start with, such as ``"model.vision_tower."``.
        vision: ``vision_config``.
    """
    width = vision.extent("hidden_size", 768)
    patch = f"{prefix}patch_embedder."
    places = (2, vision.extent("position_embedding_size", 10_240), width)
    tensors = linear(f"{patch}input_proj", width, 3 * vision.repeats("patch_size", 16) ** 2)
    tensors[f"{patch}position_embedding_table"] = Expected(places, "embedding", "Gemma4VisionPatchEmbedder")
    for layer in range(vision.repeats("num_hidden_layers", 16)):
        tensors |= _vision_layer(f"{prefix}encoder.layers.{layer}.", vision, width)
    if vision.flag("standardize", default=False):
        tensors[f"{prefix}std_bias"] = Expected((width,), "bias", "Gemma4VisionModel")
        tensors[f"{prefix}std_scale"] = Expected((width,), "other", "Gemma4VisionModel")
    return tensors


def audio_tower(prefix: str, audio: Section) -> Tensors:
    """Every tensor of the audio tower.

    Args:
        prefix: What the names start with, such as ``"model.audio_tower."``.
        audio: ``audio_config``.
    """
    width = audio.extent("hidden_size", 1024)
    tensors = _subsampling(f"{prefix}{_SUBSAMPLE}", audio, width)
    for layer in range(audio.repeats("num_hidden_layers", 12)):
        tensors |= _conformer(f"{prefix}layers.{layer}.", audio, width)
    return tensors | linear(f"{prefix}output_proj", audio.extent("output_proj_dims", 1536), width, bias=True)


def audio_convs(prefix: str, audio: Section) -> dict[str, Conv]:
    """The audio tower's convolutions: two that subsample, and a depthwise one in every layer; norms follow them all.

    ``LayerNorm`` and the RMS norms compute in float32; relu and the clamps between raise no magnitude.

    Args:
        prefix: What the names start with, such as ``"model.audio_tower."``.
        audio: ``audio_config``.
    """
    eps = audio.number("rms_norm_eps", 1e-6, 0.0, 1.0)
    source: Input = _LOG_MEL
    convs: dict[str, Conv] = {}
    for index, channels in enumerate(_channels(audio)):
        module = f"{prefix}{_SUBSAMPLE}layer{index}."
        norm = Norm(f"{module}norm.weight", eps, "float32")
        convs[f"{module}conv.weight"] = Conv(source, _TAPS**2, depthwise=False, norm=norm)
        source = AfterNorm(norm.weight, channels)
    width, taps = audio.extent("hidden_size", 1024), audio.repeats("conv_kernel_size", 5)
    for layer in range(audio.repeats("num_hidden_layers", 12)):
        module = f"{prefix}layers.{layer}.lconv1d."
        source = Linear(f"{module}linear_start.linear.weight", AfterNorm(f"{module}pre_layer_norm.weight", width))
        norm = Norm(f"{module}conv_norm.weight", eps, "float32")
        convs[f"{module}depthwise_conv1d.weight"] = Conv(source, taps, depthwise=True, norm=norm)
    return convs


def _clipped(module: str, outputs: int, inputs: int, *, clips: bool) -> Tensors:
    """Gemma4ClippableLinear: a linear, and the bounds between which it clamps its input and its output."""
    tensors = linear(f"{module}.linear", outputs, inputs)
    for bound in ("input_min", "input_max", "output_min", "output_max") if clips else ():
        tensors[f"{module}.{bound}"] = Expected((), "other", "Gemma4ClippableLinear", bound=True)
    return tensors


def _vision_layer(prefix: str, vision: Section, width: int) -> Tensors:
    clips = vision.flag("use_clipped_linears", default=False)
    head, inner = vision.extent("head_dim", 64), vision.extent("intermediate_size", 3072)
    queries, keys = (vision.repeats(f"num_{what}_heads", 12) * head for what in ("attention", "key_value"))
    attention = {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (width, queries)}
    feed_forward = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    tensors = rms_norm(f"{prefix}input_layernorm", width, NORM)
    for module, shapes in (("self_attn", attention), ("mlp", feed_forward)):
        for name, (outputs, inputs) in shapes.items():
            tensors |= _clipped(f"{prefix}{module}.{name}_proj", outputs, inputs, clips=clips)
    for norm in SANDWICH_NORMS:
        tensors |= rms_norm(f"{prefix}{norm}", width, NORM)
    return (
        tensors | rms_norm(f"{prefix}self_attn.q_norm", head, NORM) | rms_norm(f"{prefix}self_attn.k_norm", head, NORM)
    )


def _channels(audio: Section) -> tuple[int, ...]:
    return audio.sized("subsampling_conv_channels", (128, 32), 2)


def _subsampling(prefix: str, audio: Section, width: int) -> Tensors:
    """Two convolutions over (time, frequency), each of stride 2, then a projection of what is left."""
    tensors: Tensors = {}
    inputs, channels = 1, _channels(audio)
    for index, outputs in enumerate(channels):
        module = f"{prefix}layer{index}."
        tensors[f"{module}conv.weight"] = Expected((outputs, inputs, _TAPS, _TAPS), "conv", "Conv2d")
        tensors |= rms_norm(f"{module}norm", outputs, "LayerNorm")
        inputs = outputs
    left = channels[0] // _STRIDE**2  # modeling_gemma4.py takes the first channels for the frequencies
    if not left:
        audio.refuse("subsampling_conv_channels", list(channels), "at least 4 and 1")
    return tensors | linear(f"{prefix}input_proj_linear", width, left * channels[1])


def _conformer(prefix: str, audio: Section, width: int) -> Tensors:
    clips = audio.flag("use_clipped_linears", default=True)
    tensors: Tensors = {}
    for half in ("feed_forward1.", "feed_forward2."):
        tensors |= _clipped(f"{prefix}{half}ffw_layer_1", 4 * width, width, clips=clips)
        tensors |= _clipped(f"{prefix}{half}ffw_layer_2", width, 4 * width, clips=clips)
        for norm in ("pre_layer_norm", "post_layer_norm"):
            tensors |= rms_norm(f"{prefix}{half}{norm}", width, NORM)
    tensors |= _attention(f"{prefix}self_attn.", audio, width, clips=clips)
    tensors |= _light_conv(f"{prefix}lconv1d.", audio, width, clips=clips)
    for norm in ("norm_pre_attn", "norm_post_attn", "norm_out"):
        tensors |= rms_norm(f"{prefix}{norm}", width, NORM)
    return tensors


def _attention(prefix: str, audio: Section, width: int, *, clips: bool) -> Tensors:
    heads = audio.repeats("num_attention_heads", 8)
    head = width // heads
    if not head:
        audio.refuse("hidden_size", width, f"at least num_attention_heads, {heads}")
    tensors: Tensors = {f"{prefix}per_dim_scale": Expected((head,), "other", "Gemma4AudioAttention")}
    for name in ("q_proj", "k_proj", "v_proj"):
        tensors |= _clipped(f"{prefix}{name}", heads * head, width, clips=clips)
    tensors |= _clipped(f"{prefix}post", width, width, clips=clips)
    return tensors | linear(f"{prefix}relative_k_proj", heads * head, width)


def _light_conv(prefix: str, audio: Section, width: int, *, clips: bool) -> Tensors:
    kernel = Expected((width, 1, audio.repeats("conv_kernel_size", 5)), "conv", "Gemma4AudioCausalConv1d")
    return {
        **rms_norm(f"{prefix}pre_layer_norm", width, NORM),
        **_clipped(f"{prefix}linear_start", 2 * width, width, clips=clips),
        f"{prefix}depthwise_conv1d.weight": kernel,
        **rms_norm(f"{prefix}conv_norm", width, NORM),
        **_clipped(f"{prefix}linear_end", width, width, clips=clips),
    }
