"""MobileNetV5, the image encoder of Gemma 3n: timm 1.0.31, mobilenetv5.py, ``mobilenetv5_300m_enc``.

The blocks are the strings of timm's ``arch_def`` as data. The names of a block's tensors, what each convolution
reads and which norm reads it, are in :mod:`gemma_doctor.architectures.mobilenet_blocks`.
"""

from __future__ import annotations

from gemma_doctor.architectures.config import Section
from gemma_doctor.architectures.expressions import Input, Joined, Pooled, Within
from gemma_doctor.architectures.mobilenet_blocks import (
    Attention,
    Block,
    Edge,
    Inverted,
    Kernel,
    Part,
    block_part,
    chain,
    divisible,
    fusion,
    stem,
)

__all__ = ["SUPPORTED_ARGS", "mobilenetv5"]

SUPPORTED_ARGS = frozenset({"channel_multiplier", "drop_path_rate", "drop_rate"})
"""The ``vision_config.model_args`` that are understood; the last two change no tensor."""

_STEM_CHANNELS = 64
_FUSED_CHANNELS = 2048
"""Output channels of the fusion adapter; timm's encoder class fixes them."""

_SHARED_ATTENTION = Attention(heads=12, width=64, kv_stride=2, channels=640)
_PLAIN_ATTENTION = Attention(heads=16, width=96, kv_stride=1, channels=1280)

_STAGES: tuple[tuple[Block, ...], ...] = (
    (
        Edge(stride=2, channels=128),
        Edge(stride=1, channels=128),
        Edge(stride=1, channels=128),
    ),
    (
        Inverted(start=3, middle=5, stride=2, expansion=6, channels=256),
        Inverted(start=5, middle=0, stride=1, expansion=4, channels=256),
        Inverted(start=3, middle=0, stride=1, expansion=4, channels=256),
        Inverted(start=5, middle=0, stride=1, expansion=4, channels=256),
        Inverted(start=3, middle=0, stride=1, expansion=4, channels=256),
    ),
    (
        Inverted(start=5, middle=5, stride=2, expansion=6, channels=640),
        *(Inverted(start=5, middle=0, stride=1, expansion=4, channels=640),) * 7,
        Inverted(start=0, middle=0, stride=1, expansion=1, channels=640),
        *(_SHARED_ATTENTION, Inverted(start=0, middle=0, stride=1, expansion=2, channels=640)) * 14,
    ),
    (
        Inverted(start=5, middle=5, stride=2, expansion=6, channels=1280),
        *(_PLAIN_ATTENTION, Inverted(start=0, middle=0, stride=1, expansion=2, channels=1280)) * 19,
    ),
)


def mobilenetv5(prefix: str, vision: Section) -> Part | None:
    """The encoder's tensors and convolutions.

    Args:
        prefix: What the names start with, such as ``"model.vision_tower.timm_model."``.
        vision: ``vision_config``.

    Returns:
        The encoder; None for another timm architecture, or a ``model_args`` key outside :data:`SUPPORTED_ARGS`.
    """
    args = vision.child("model_args")
    if vision.text("architecture") not in {None, "mobilenetv5_300m_enc"} or not SUPPORTED_ARGS.issuperset(args.values):
        return None
    return _encoder(prefix, args.number("channel_multiplier", 1.0, 0.0, 64.0))


def _encoder(prefix: str, multiplier: float) -> Part:
    """Stem, four stages, and the fusion of the last two (MobileNetV5Encoder.forward_features)."""
    channels = _STEM_CHANNELS if multiplier < 1 else _rounded(_STEM_CHANNELS, multiplier)
    pixels = Within(1.0, 3, "pixels rescaled to [0, 1]")
    parts = [stem(f"{prefix}conv_stem.", pixels, Kernel(channels, 3, size=3, stride=2))]
    ends: list[tuple[Input, int]] = []
    for index, blocks in enumerate(_STAGES):
        for position, block in enumerate(blocks):
            width = _rounded(block.channels, multiplier)
            parts.append(block_part(f"{prefix}blocks.{index}.{position}.", block, channels, width, parts[-1].output))
            channels = width
        ends.append((parts[-1].output, channels))
    (fine, fine_channels), (coarse, coarse_channels) = ends[-2:]
    both = Joined((fine, Pooled(coarse)))  # the coarser one is resized to the finer one's resolution
    parts.append(fusion(f"{prefix}msfa.", both, fine_channels + coarse_channels, _FUSED_CHANNELS))
    return chain(parts)


def _rounded(channels: int, multiplier: float) -> int:
    """Scaled as by timm's ``round_channels``; a multiplier of 0 leaves the number alone."""
    return divisible(channels * multiplier) if multiplier else channels
