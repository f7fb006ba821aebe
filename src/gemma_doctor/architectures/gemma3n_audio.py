"""The audio tower of Gemma 3n: a Universal Speech Model conformer (transformers 5.23, modeling_gemma3n.py)."""

from __future__ import annotations

from gemma_doctor.architectures.base import Conv, Expected, Norm
from gemma_doctor.architectures.config import Section
from gemma_doctor.architectures.expressions import AfterNorm, Linear, Unbounded, Within
from gemma_doctor.architectures.pieces import Tensors, linear, rms_norm

__all__ = ["audio_convs", "audio_tower", "hidden_size"]

_NORM = "Gemma3nRMSNorm"
_SUBSAMPLE = "subsample_conv_projection."
_KERNELS, _STRIDES = ((3, 3), (3, 3)), ((2, 2), (2, 2))

_LOG_MEL = Within(
    12.5,
    1,
    # |x[n] - 0.97 x[n-1]| <= 1.97, a Hann window of 512 sums to 256, so |STFT| <= 505; a mel filter weighs at most
    # 513 bins with at most 1, and ln(505 * 513) < 12.5; from below the features stop at ln(1e-5) > -11.6
    # (feature_extraction_gemma3n.py).
    "log-mel features of a waveform in [-1, 1]",
)


def hidden_size(audio: Section) -> int:
    """Channels of the tower (configuration_gemma3n.py)."""
    return audio.extent("hidden_size", 1536)


def audio_tower(prefix: str, audio: Section) -> Tensors:
    """Every tensor of the tower.

    Args:
        prefix: What the names start with, such as ``"model.audio_tower."``.
        audio: ``audio_config``.
    """
    width = hidden_size(audio)
    tensors = _subsampling(f"{prefix}{_SUBSAMPLE}", audio, width)
    for layer in range(audio.repeats("conf_num_hidden_layers", 12)):
        tensors |= _conformer(f"{prefix}conformer.{layer}.", audio, width)
    return tensors


def audio_convs(prefix: str, audio: Section) -> dict[str, Conv]:
    """The tower's convolutions: two that subsample, and a depthwise one in every layer.

    The norm behind the first two averages over all past frames: what one frame may reach grows with their number,
    so nothing bounds the second one's input. Both norms compute in float32.

    Args:
        prefix: What the names start with, such as ``"model.audio_tower."``.
        audio: ``audio_config``.
    """
    frames = (_LOG_MEL, Unbounded("a cumulative group norm's output grows with the audio's length"))
    eps = audio.number("sscp_conv_group_norm_eps", 1e-3, 0.0, 1.0)
    convs: dict[str, Conv] = {}
    for index, (high, wide) in enumerate(audio.pairs("sscp_conv_kernel_size", _KERNELS)):
        module = f"{prefix}{_SUBSAMPLE}conv_{index}."
        norm = Norm(f"{module}norm.weight", eps, "float32")
        convs[f"{module}conv.weight"] = Conv(frames[index], high * wide, depthwise=False, norm=norm)
    for layer in range(audio.repeats("conf_num_hidden_layers", 12)):
        convs |= _light_conv(f"{prefix}conformer.{layer}.lconv1d.", audio)
    return convs


def _light_conv(prefix: str, audio: Section) -> dict[str, Conv]:
    """Norm, linear, GLU, depthwise convolution, clamp (inactive at 1e10), norm."""
    normed = AfterNorm(f"{prefix}pre_layer_norm.weight", hidden_size(audio))
    source = Linear(f"{prefix}linear_start.weight", normed)
    norm = Norm(f"{prefix}conv_norm.weight", audio.number("rms_norm_eps", 1e-6, 0.0, 1.0), "float32")
    taps = audio.repeats("conf_conv_kernel_size", 5)
    return {f"{prefix}depthwise_conv1d.weight": Conv(source, taps, depthwise=True, norm=norm)}


def _subsampling(prefix: str, audio: Section, width: int) -> Tensors:
    """Two convolutions over (time, frequency), then a projection of what is left of the frequencies."""
    channels = audio.sized("sscp_conv_channel_size", (128, 32), 2)
    kernels = audio.pairs("sscp_conv_kernel_size", _KERNELS)
    strides = audio.pairs("sscp_conv_stride_size", _STRIDES)
    tensors: Tensors = {}
    inputs, bins = 1, audio.extent("input_feat_size", 128)
    for index in range(2):
        module = f"{prefix}conv_{index}."
        shape = (channels[index], inputs, *kernels[index])
        tensors[f"{module}conv.weight"] = Expected(shape, "conv", "Conv2d")
        tensors |= rms_norm(f"{module}norm", channels[index], "Gemma3nAudioCumulativeGroupNorm")
        inputs, bins = channels[index], _bins_left(audio, bins, kernels[index][1], strides[index][1])
    return tensors | linear(f"{prefix}input_proj_linear", width, inputs * bins)


def _bins_left(audio: Section, bins: int, kernel: int, stride: int) -> int:
    """Frequency bins behind a convolution that is padded by one on either side."""
    left = (bins + 2 - kernel) // stride + 1
    if left < 1:
        audio.refuse("input_feat_size", bins, f"large enough for kernels that are {kernel} wide")
    return left


def _conformer(prefix: str, audio: Section, width: int) -> Tensors:
    return {
        **_feed_forward(f"{prefix}ffw_layer_start.", width),
        **_attention(f"{prefix}attention.", audio, width),
        **_light_conv_tensors(f"{prefix}lconv1d.", audio, width),
        **_feed_forward(f"{prefix}ffw_layer_end.", width),
        **rms_norm(f"{prefix}norm", width, _NORM),
    }


def _feed_forward(prefix: str, width: int) -> Tensors:
    return {
        **rms_norm(f"{prefix}pre_layer_norm", width, _NORM),
        **linear(f"{prefix}ffw_layer_1", 4 * width, width),
        **linear(f"{prefix}ffw_layer_2", width, 4 * width),
        **rms_norm(f"{prefix}post_layer_norm", width, _NORM),
    }


def _attention(prefix: str, audio: Section, width: int) -> Tensors:
    heads = audio.repeats("conf_num_attention_heads", 8)
    if width % heads:
        audio.refuse("hidden_size", width, f"a multiple of conf_num_attention_heads, {heads}")
    attn = f"{prefix}attn."
    tensors = rms_norm(f"{prefix}pre_attn_norm", width, _NORM)
    tensors[f"{attn}per_dim_scale"] = Expected((width // heads,), "other", "Gemma3nAudioAttention")
    for projection in ("relative_position_embedding.pos_proj", "q_proj", "k_proj", "v_proj"):
        tensors |= linear(f"{attn}{projection}", width, width)
    return tensors | linear(f"{prefix}post", width, width) | rms_norm(f"{prefix}post_norm", width, _NORM)


def _light_conv_tensors(prefix: str, audio: Section, width: int) -> Tensors:
    kernel = Expected((width, 1, audio.repeats("conf_conv_kernel_size", 5)), "conv", "Conv1d")
    return {
        **rms_norm(f"{prefix}pre_layer_norm", width, _NORM),
        **linear(f"{prefix}linear_start", 2 * width, width),
        f"{prefix}depthwise_conv1d.weight": kernel,
        **rms_norm(f"{prefix}conv_norm", width, _NORM),
        **linear(f"{prefix}linear_end", width, width),
    }
