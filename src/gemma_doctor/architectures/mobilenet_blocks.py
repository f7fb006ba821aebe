"""The blocks of MobileNetV5: timm 1.0.31, _efficientnet_blocks.py and layers/attention2d.py.

Each function gives one block's tensors, its convolutions with what bounds their input, and what bounds its output.
GELU is left out of the expressions: it never grows a value (|gelu(x)| <= |x|).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from gemma_doctor.architectures.base import Absorber, Conv, Expected, Norm, Value
from gemma_doctor.architectures.expressions import (
    AfterNorm,
    Dot,
    Input,
    Linear,
    Pooled,
    Repeated,
    Scaled,
    Shifted,
    Slice,
    Sum,
    Times,
)
from gemma_doctor.architectures.limits import SQUARE_LIMIT
from gemma_doctor.tensors import FP16_MAX

__all__ = [
    "Attention",
    "Block",
    "Edge",
    "Inverted",
    "Kernel",
    "Part",
    "block_part",
    "chain",
    "divisible",
    "fusion",
    "stem",
]

_EPS = 1e-6
"""Of every norm in the encoder; timm's RmsNorm2d fixes it, and squares its input in the input's dtype."""

_NORM = "RmsNormAct2d"

STREAM = "the image encoder's residual stream"
"""How messages call it."""


@dataclass(frozen=True, slots=True)
class Edge:
    """EdgeResidual: a 3x3 expansion by 4, then a 1x1 projection."""

    stride: int
    channels: int


@dataclass(frozen=True, slots=True)
class Inverted:
    """UniversalInvertedResidual: depthwise kernels before and within the expansion, where they are not 0."""

    start: int
    middle: int
    stride: int
    expansion: int
    channels: int


@dataclass(frozen=True, slots=True)
class Attention:
    """MobileAttention with one key and value head of ``width``, taken from every ``kv_stride``-th position."""

    heads: int
    width: int
    kv_stride: int
    channels: int
    stride: int = 1


Block: TypeAlias = Edge | Inverted | Attention


@dataclass(frozen=True, slots=True)
class Kernel:
    """A convolution's extents."""

    outputs: int
    inputs: int
    size: int = 1
    stride: int = 1
    depthwise: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its weight."""
        return (self.outputs, 1 if self.depthwise else self.inputs, self.size, self.size)

    @property
    def module(self) -> str:
        """Its class: with a stride, "same" padding depends on the image (create_conv2d_pad)."""
        return "Conv2d" if self.stride == 1 else "Conv2dSame"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the encoder.

    Attributes:
        expected: Its tensors.
        convs: Its convolutions.
        output: What bounds its output.
        values: What it writes in a float16 run, in order.
    """

    expected: Mapping[str, Expected]
    convs: Mapping[str, Conv]
    output: Input
    values: tuple[Value, ...] = ()


def divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor`` that is not more than a tenth below (timm's ``make_divisible``)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def chain(parts: Sequence[Part]) -> Part:
    """The parts as one, with the last one's output."""
    expected = {name: tensor for part in parts for name, tensor in part.expected.items()}
    convs = {name: conv for part in parts for name, conv in part.convs.items()}
    return Part(expected, convs, parts[-1].output, tuple(value for part in parts for value in part.values))


def stem(prefix: str, pixels: Input, kernel: Kernel) -> Part:
    """The first convolution, whose bias came with timm 1.0.17 (older checkpoints lack it, and it was zero)."""
    part = _normed(f"{prefix}conv", f"{prefix}bn", pixels, kernel)
    weight, bias = f"{prefix}conv.weight", f"{prefix}conv.bias"
    biased = Expected((kernel.outputs,), "bias", kernel.module, "stem-bias")
    convs = {weight: replace(part.convs[weight], bias=bias)}
    first, *rest = part.values
    shifted = replace(first, source=Shifted(bias, first.source))
    return Part({**part.expected, bias: biased}, convs, part.output, (shifted, *rest))


def block_part(prefix: str, block: Block, inputs: int, outputs: int, stream: Input) -> Part:
    """One block of a stage.

    Args:
        prefix: What its names start with, such as ``"blocks.0.0."``.
        block: Its kind and extents.
        inputs: Channels that it reads.
        outputs: Channels that it writes.
        stream: What bounds its input.
    """
    part = _branch(prefix, block, inputs, outputs, stream)
    has_skip = inputs == outputs and block.stride == 1
    output, name = Sum((stream, part.output)) if has_skip else part.output, prefix.removesuffix(".")
    written = Value(name, "residual", output, FP16_MAX, STREAM, name)
    return replace(part, output=output, values=(*part.values, written))


def fusion(prefix: str, source: Input, inputs: int, outputs: int) -> Part:
    """MobileNetV5MultiScaleFusionAdapter: an inverted block without skip or scale, average pooling, a norm."""
    block = Inverted(start=0, middle=0, stride=1, expansion=2, channels=outputs)
    part = _inverted(f"{prefix}ffn.", block, inputs, outputs, source)
    gain = f"{prefix}norm.weight"
    norm = Expected((outputs,), "norm", "RmsNorm2d")
    normed, name = AfterNorm(gain, outputs), gain.removesuffix(".weight")
    written = (_squared(name, Pooled(part.output)), Value(name, "norm", normed, module=name))
    return Part({**part.expected, gain: norm}, part.convs, normed, (*part.values, *written))


def _branch(prefix: str, block: Block, inputs: int, outputs: int, stream: Input) -> Part:
    """One block without its skip."""
    match block:
        case Edge():
            return _edge(prefix, block, inputs, outputs, stream)
        case Inverted():
            return _scaled(prefix, _inverted(prefix, block, inputs, outputs, stream), outputs)
        case Attention():
            part = _scaled(prefix, _attention(prefix, block, inputs, outputs), outputs)
            return replace(part, values=(_squared(f"{prefix}norm", stream, STREAM), *part.values))


def _scaled(prefix: str, part: Part, channels: int) -> Part:
    gamma = f"{prefix}layer_scale.gamma"
    scale = Expected((channels,), "other", "LayerScale2d")
    output, name = Scaled(gamma, part.output), gamma.removesuffix(".gamma")
    values = (*part.values, Value(name, "other", output, module=name))
    return Part({**part.expected, gamma: scale}, part.convs, output, values)


def _squared(norm: str, source: Input, stream: str | None = None) -> Value:
    """What a norm reads, and squares in its own dtype."""
    return Value(f"{norm} (its input, squared)", "other", source, SQUARE_LIMIT, stream)


def _normed(conv: str, norm: str, source: Input, kernel: Kernel, module: str = _NORM) -> Part:
    """A convolution and the norm that reads it."""
    part = _plain(conv, source, kernel)
    weight, gain = f"{conv}.weight", f"{norm}.weight"
    convs = {weight: replace(part.convs[weight], norm=Norm(gain, _EPS, "input"))}
    expected = {**part.expected, gain: Expected((kernel.outputs,), "norm", module)}
    normed = AfterNorm(gain, kernel.outputs)
    values = (replace(part.values[0], limit=SQUARE_LIMIT), Value(norm, "norm", normed, module=norm))
    return Part(expected, convs, normed, values)


def _plain(conv: str, source: Input, kernel: Kernel, absorber: Absorber | None = None) -> Part:
    """A convolution without a norm behind it."""
    weight, taps = f"{conv}.weight", kernel.size**2
    output = Linear(weight, source, taps, kernel.depthwise)
    return Part(
        expected={weight: Expected(kernel.shape, "conv", kernel.module)},
        convs={weight: Conv(source, taps, kernel.depthwise, absorber=absorber)},
        output=output,
        values=(Value(conv, "conv", output, module=conv),),
    )


def _edge(prefix: str, block: Edge, inputs: int, outputs: int, stream: Input) -> Part:
    inner = divisible(inputs * 4)
    expand = _normed(f"{prefix}conv_exp", f"{prefix}bn1", stream, Kernel(inner, inputs, 3, block.stride))
    project = _normed(f"{prefix}conv_pwl", f"{prefix}bn2", expand.output, Kernel(outputs, inner))
    return chain((expand, project))


def _inverted(prefix: str, block: Inverted, inputs: int, outputs: int, stream: Input) -> Part:
    """The convolutions of a UniversalInvertedResidual, without its scale and skip."""
    inner = divisible(inputs * block.expansion)
    parts: list[Part] = []

    def add(name: str, kernel: Kernel) -> None:
        source = parts[-1].output if parts else stream
        parts.append(_normed(f"{prefix}{name}.conv", f"{prefix}{name}.bn", source, kernel))

    if block.start:
        stride = 1 if block.middle else block.stride
        add("dw_start", Kernel(inputs, inputs, block.start, stride, depthwise=True))
    add("pw_exp", Kernel(inner, inputs))
    if block.middle:
        add("dw_mid", Kernel(inner, inner, block.middle, block.stride, depthwise=True))
    add("pw_proj", Kernel(outputs, inner))
    return chain(parts)


def _attention(prefix: str, block: Attention, inputs: int, outputs: int) -> Part:
    """The norm and the multi-query attention of a MobileAttention, without its scale and skip.

    Softmax mixes value vectors with weights that sum to 1, and every head mixes the same ones. The stream itself is
    read by the norm only, so it bounds nothing here.
    """
    norm, attn, gamma = f"{prefix}norm.weight", f"{prefix}attn.", f"{prefix}layer_scale.gamma"
    normed = AfterNorm(norm, inputs)
    module = norm.removesuffix(".weight")
    values = (Value(module, "norm", normed, module=module),)
    first = Part({norm: Expected((inputs,), "norm", _NORM)}, {}, normed, values)
    queries = Kernel(block.heads * block.width, inputs)
    query = _plain(f"{attn}query.proj", normed, queries, Absorber(f"{attn}key.proj.weight", "dual"))
    key = _key_or_value(f"{attn}key.", block, inputs, normed, Absorber(f"{attn}query.proj.weight", "dual"))
    value = _key_or_value(f"{attn}value.", block, inputs, normed, Absorber(f"{attn}output.proj.weight", "reader"))
    heads = Repeated(Pooled(value.output), block.heads)
    back = Kernel(outputs, block.heads * block.width)
    output = _plain(f"{attn}output.proj", heads, back, Absorber(gamma, "gain"))
    scores = Times(block.width**-0.5, Dot(Slice(query.output, block.width), key.output))
    inner = (
        Value(f"{prefix}attn (scores)", "scores", scores),
        Value(f"{prefix}attn (mix of values)", "attention", heads),
    )
    return chain((first, query, key, replace(value, values=(*value.values, *inner)), output))


def _key_or_value(prefix: str, block: Attention, inputs: int, source: Input, absorber: Absorber) -> Part:
    parts = []
    if block.kv_stride > 1:
        kernel = Kernel(inputs, inputs, 3, block.kv_stride, depthwise=True)
        parts.append(_normed(f"{prefix}down_conv", f"{prefix}norm", source, kernel, "RmsNorm2d"))
    read = parts[-1].output if parts else source
    parts.append(_plain(f"{prefix}proj", read, Kernel(block.width, inputs), absorber))
    return chain(parts)
