"""The image encoder and the audio tower of Gemma 3n: every convolution, what it reads and what follows it."""

from __future__ import annotations

import math
import re
from collections import Counter

import architecture_data
import checkpoints
import pytest

from gemma_doctor.architectures import identify
from gemma_doctor.architectures.expressions import (
    AfterNorm,
    Input,
    Joined,
    Linear,
    Pooled,
    Repeated,
    Scaled,
    Sum,
    Unbounded,
    Within,
)
from gemma_doctor.architectures.mobilenet_blocks import Edge, block_part, divisible

E2B = identify(architecture_data.config("gemma-3n-E2B"))
TIMM = "model.vision_tower.timm_model."
AUDIO = "model.audio_tower."
VISION = {name.removeprefix(TIMM): conv for name, conv in E2B.convs.items() if name.startswith(TIMM)}


def _kind(name: str) -> str:
    """A convolution's name without the numbers of its block."""
    return re.sub(r"^blocks\.\d+\.\d+\.", "", name)


def test_every_convolution_is_declared() -> None:
    assert len(VISION) == 282
    assert sum(name.startswith(TIMM) for name in E2B.expected) == 548
    assert sum(name.startswith(AUDIO) for name in E2B.convs) == 14
    assert set(E2B.convs) == {name for name, tensor in E2B.expected.items() if tensor.role == "conv"}


@pytest.mark.parametrize("name", checkpoints.PUBLISHED)
def test_a_norm_that_squares_its_input_follows_each_published_convolution(name: str) -> None:
    norm = E2B.convs[name].norm
    assert norm is not None
    assert norm.squares_in == "input"
    assert norm.eps == 1e-6
    assert E2B.expected[norm.weight].shape == E2B.expected[name].shape[:1]


def test_what_follows_each_kind_of_convolution() -> None:
    followed = Counter(
        (_kind(name), "norm" if conv.norm else conv.absorber.relation if conv.absorber else "nothing")
        for name, conv in VISION.items()
    )
    assert followed == {
        ("conv_stem.conv.weight", "norm"): 1,
        ("conv_exp.weight", "norm"): 3,
        ("conv_pwl.weight", "norm"): 3,
        ("dw_start.conv.weight", "norm"): 14,
        ("pw_exp.conv.weight", "norm"): 48,
        ("dw_mid.conv.weight", "norm"): 3,
        ("pw_proj.conv.weight", "norm"): 48,
        ("attn.key.down_conv.weight", "norm"): 14,
        ("attn.value.down_conv.weight", "norm"): 14,
        ("attn.query.proj.weight", "dual"): 33,
        ("attn.key.proj.weight", "dual"): 33,
        ("attn.value.proj.weight", "reader"): 33,
        ("attn.output.proj.weight", "gain"): 33,
        ("msfa.ffn.pw_exp.conv.weight", "norm"): 1,
        ("msfa.ffn.pw_proj.conv.weight", "norm"): 1,
    }


def test_who_takes_back_a_factor_in_an_attention() -> None:
    attention = f"{TIMM}blocks.2.21.attn."
    takers = {
        part: conv.absorber.tensor
        for part in ("query", "key", "value", "output")
        if (conv := E2B.convs[f"{attention}{part}.proj.weight"]).absorber
    }
    assert takers == {
        "query": f"{attention}key.proj.weight",
        "key": f"{attention}query.proj.weight",
        "value": f"{attention}output.proj.weight",
        "output": f"{TIMM}blocks.2.21.layer_scale.gamma",
    }


def test_every_name_that_a_convolution_refers_to_exists() -> None:
    for conv in E2B.convs.values():
        named = {conv.norm.weight if conv.norm else None, conv.absorber.tensor if conv.absorber else None, conv.bias}
        assert (named | _tensors(conv.source)) - {None} <= set(E2B.expected)


def _tensors(source: Input) -> set[str | None]:
    match source:
        case Within() | Unbounded():
            return set()
        case AfterNorm(gain):
            return {gain}
        case Linear(weight):
            return {weight} | _tensors(source.source)
        case Scaled(gain):
            return {gain} | _tensors(source.source)
        case Pooled(inner) | Repeated(inner):
            return _tensors(inner)
        case Sum(parts) | Joined(parts):
            return set[str | None]().union(*map(_tensors, parts))
        case _:
            raise AssertionError(f"no convolution's input is a {type(source).__name__}")


def test_the_sources_follow_the_forward_pass() -> None:
    block = f"{TIMM}blocks.2."
    assert VISION["conv_stem.conv.weight"].source == Within(1.0, 3, "pixels rescaled to [0, 1]")
    assert VISION["conv_stem.conv.weight"].bias == f"{TIMM}conv_stem.conv.bias"
    # an edge block with a stride has no skip: the next block reads its last norm
    assert VISION["blocks.0.0.conv_exp.weight"].source == AfterNorm(f"{TIMM}conv_stem.bn.weight", 64)
    first = AfterNorm(f"{TIMM}blocks.0.0.bn2.weight", 128)
    assert VISION["blocks.0.1.conv_exp.weight"].source == first
    second = Sum((first, AfterNorm(f"{TIMM}blocks.0.1.bn2.weight", 128)))
    assert VISION["blocks.0.2.conv_exp.weight"].source == second
    # an inverted block starts depthwise on the stream, and its scale stands before the skip
    start = VISION["blocks.2.1.dw_start.conv.weight"]
    entry = Scaled(f"{block}0.layer_scale.gamma", AfterNorm(f"{block}0.pw_proj.bn.weight", 640))
    assert (start.source, start.taps, start.depthwise) == (entry, 25, True)
    assert VISION["blocks.2.1.pw_exp.conv.weight"].source == AfterNorm(f"{block}1.dw_start.bn.weight", 640)
    scaled = Scaled(f"{block}1.layer_scale.gamma", AfterNorm(f"{block}1.pw_proj.bn.weight", 640))
    assert VISION["blocks.2.2.dw_start.conv.weight"].source == Sum((entry, scaled))


def test_the_sources_follow_the_attention() -> None:
    attention = f"{TIMM}blocks.2.21.attn."
    normed = AfterNorm(f"{TIMM}blocks.2.21.norm.weight", 640)
    downsampled = AfterNorm(f"{attention}value.norm.weight", 640)
    value = Linear(f"{attention}value.proj.weight", downsampled)
    assert E2B.convs[f"{attention}query.proj.weight"].source == normed
    assert E2B.convs[f"{attention}key.down_conv.weight"].source == normed
    assert E2B.convs[f"{attention}key.down_conv.weight"].depthwise
    assert E2B.convs[f"{attention}key.proj.weight"].source == AfterNorm(f"{attention}key.norm.weight", 640)
    assert E2B.convs[f"{attention}output.proj.weight"].source == Repeated(Pooled(value), 12)
    full = f"{TIMM}blocks.3.1."
    assert E2B.convs[f"{full}attn.key.proj.weight"].source == AfterNorm(f"{full}norm.weight", 1280)


def test_the_fusion_reads_the_ends_of_the_last_two_stages() -> None:
    source = VISION["msfa.ffn.pw_exp.conv.weight"].source
    assert isinstance(source, Joined)
    fine, coarse = source.parts
    assert isinstance(coarse, Pooled)
    assert _writers(fine) == 37  # stage 2: the block that enters it, and 36 with a skip
    assert _writers(coarse.source) == 39
    assert VISION["msfa.ffn.pw_proj.conv.weight"].source == AfterNorm(f"{TIMM}msfa.ffn.pw_exp.bn.weight", 3840)


def _writers(stream: Input) -> int:
    return sum(map(_writers, stream.terms)) if isinstance(stream, Sum) else 1


def test_the_audio_towers_convolutions() -> None:
    light = E2B.convs[f"{AUDIO}conformer.7.lconv1d.depthwise_conv1d.weight"]
    module = f"{AUDIO}conformer.7.lconv1d."
    assert light.source == Linear(f"{module}linear_start.weight", AfterNorm(f"{module}pre_layer_norm.weight", 1536))
    assert (light.taps, light.depthwise) == (5, True)
    subsample = [E2B.convs[f"{AUDIO}subsample_conv_projection.conv_{index}.conv.weight"] for index in range(2)]
    assert [conv.taps for conv in subsample] == [9, 9]
    assert isinstance(subsample[0].source, Within)
    assert isinstance(subsample[1].source, Unbounded)
    norms = [conv.norm for conv in (*subsample, light)]
    assert [(norm.eps, norm.squares_in) for norm in norms if norm] == [
        (1e-3, "float32"),
        (1e-3, "float32"),
        (1e-6, "float32"),
    ]


def test_the_patch_convolution_of_siglip() -> None:
    (item,) = identify(architecture_data.config("gemma-3-4b")).convs.items()
    name, conv = item
    assert name == "vision_tower.vision_model.embeddings.patch_embedding.weight"
    assert conv.source == Within(1.0, 3, "pixels rescaled to [-1, 1]")
    assert (conv.taps, conv.norm, conv.bias) == (196, None, name.replace("weight", "bias"))


@pytest.mark.parametrize(
    ("multiplier", "parameters", "stem", "fused"),
    [
        # what timm 1.0.31 builds: timm.create_model("mobilenetv5_300m_enc", num_classes=0, channel_multiplier=…)
        (0, 294_126_912, 64, 1920),
        (0.0625, 7_333_392, 64, 120),
        (0.125, 16_005_600, 64, 240),
        (0.33, 54_883_784, 64, 632),
        (1.0, 294_126_912, 64, 1920),
        (1.1, 344_624_840, 72, 2112),
    ],
)
def test_channels_scale_as_in_timm(multiplier: float, parameters: int, stem: int, fused: int) -> None:
    config = {"model_type": "gemma3n", "vision_config": {"model_args": {"channel_multiplier": multiplier}}}
    shapes = {n.removeprefix(TIMM): t.shape for n, t in identify(config).expected.items() if n.startswith(TIMM)}
    assert len(shapes) == 548
    assert shapes["conv_stem.conv.weight"] == (stem, 3, 3, 3)
    assert shapes["msfa.ffn.pw_exp.conv.weight"] == (2 * fused, fused, 1, 1)
    assert sum(map(math.prod, shapes.values())) == parameters


@pytest.mark.parametrize(
    ("channels", "expected"), [(1.0, 8), (12.0, 16), (11.9, 16), (8.8, 8), (9.5, 16), (42.24, 40), (35.5, 32)]
)
def test_channels_round_to_multiples_of_eight_but_not_a_tenth_down(channels: float, expected: int) -> None:
    assert divisible(channels) == expected


@pytest.mark.parametrize(
    "vision",
    [
        {"architecture": "mobilenetv4_conv_small"},
        {"model_args": {"in_chans": 1}},
        {"model_args": {"channel_multiplier": 1.0, "group_size": 8}},
    ],
)
def test_an_encoder_that_is_not_known_makes_the_model_generic(vision: dict[str, object]) -> None:
    assert identify({"model_type": "gemma3n", "vision_config": vision}).family == "generic"


def test_arguments_that_change_no_tensor_are_accepted() -> None:
    vision = {"model_args": {"drop_rate": 0.1, "drop_path_rate": 0.2}}
    assert (
        identify({"model_type": "gemma3n", "vision_config": vision}).expected
        == identify({"model_type": "gemma3n"}).expected
    )


def test_a_block_that_strides_has_no_skip_even_where_it_keeps_its_channels() -> None:
    """As in timm; the published widths have no such block, and those of a very small multiplier do."""
    pixels = Within(1.0, 8, "pixels")
    kept, strided = (block_part("blocks.0.0.", Edge(stride, 8), 8, 8, pixels).output for stride in (1, 2))
    assert isinstance(kept, Sum)
    assert isinstance(strided, AfterNorm)


def test_what_a_norm_squares_in_float16_has_256_for_a_limit_and_nothing_else_has() -> None:
    convs = {value.module: value.limit for value in E2B.values if value.kind == "conv"}
    assert len(convs) == len(VISION)
    for name, conv in VISION.items():
        assert convs[f"{TIMM}{name}".removesuffix(".weight")] == (256 if conv.norm else 65504)
