"""What a float16 run of Gemma 3n's text model writes, and how it can be rescaled.

Source: transformers 5.23, modeling_gemma3n.py.

AltUp keeps several streams. Before a layer each is predicted as itself plus a combination of all of them, after it
each is corrected by the innovation times one plus another coefficient; the coefficients are linear in the tanh of a
router. All streams are bounded together, and so each layer *multiplies* the bound: after a few of them it says
nothing. The squares that the model takes in its own dtype, of the first stream before and after the layers and of what
is projected, have 256 for a limit.

Multiplied by s = 2**-k, the streams are the same function but for eps: the layer's input norm takes s as well, because
LAuReL adds what it gives to the stream, and whatever reads that norm or a stream takes 1/s. A floor of 1e-5 under the
mean square of a projected stream is not scaled: it acts on streams of an rms below 3.2e-3 only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

from gemma_doctor.architectures.base import Reader, Rescaling, Value
from gemma_doctor.architectures.config import Section
from gemma_doctor.architectures.expressions import (
    AfterNorm,
    Dot,
    Either,
    Input,
    Linear,
    Matched,
    Product,
    Rotated,
    Row,
    Scaled,
    Sum,
    Times,
    Weighted,
    Within,
)
from gemma_doctor.architectures.ledger import Ledger, activated
from gemma_doctor.architectures.limits import SQUARE_LIMIT

__all__ = ["Decoder", "ranges"]

STREAM = "the residual stream"
"""How messages call it."""
_SOFT = (
    "the soft tokens of images and sound end in a norm without a gain, and nothing else could scale them with the words"
)
_SPARSE_LAYERS = 10  # that the default activation_sparsity_pattern makes sparse, in models of more layers


@dataclass(frozen=True, slots=True)
class Decoder:
    """Where the text model lies, and what surrounds it.

    Attributes:
        prefix: What its tensors' names start with.
        text: The text config.
        layers: Number of layers.
        donors: Sharing layer -> the layer whose keys and values it uses.
        tied: Whether the head is the embedding.
        soft: What soft tokens of images and sound are made of; empty without.
    """

    prefix: str
    text: Section
    layers: int
    donors: dict[int, int]
    tied: bool
    soft: tuple[Input, ...] = ()

    @property
    def width(self) -> int:
        """Channels of a stream."""
        return self.text.extent("hidden_size", 2048)

    @property
    def extra(self) -> int:
        """Channels of a layer's own input."""
        return self.text.extent("hidden_size_per_layer_input", 256)

    @property
    def streams(self) -> int:
        """Number of AltUp's streams."""
        return self.text.integer("altup_num_inputs", 4, 1, 64)

    @property
    def eps(self) -> float:
        """Of every norm."""
        return self.text.number("rms_norm_eps", 1e-6, 0.0, 1.0)

    @property
    def table(self) -> str:
        """The embedding."""
        return f"{self.prefix}embed_tokens.weight"

    def layer(self, index: int) -> str:
        """A layer's module."""
        return f"{self.prefix}layers.{index}"


def ranges(decoder: Decoder) -> tuple[tuple[Value, ...], tuple[Rescaling, ...]]:
    """Every value that the text model writes in float16, and everything in it that can be rescaled.

    Args:
        decoder: The text model.
    """
    ledger = Ledger()
    inner: list[Rescaling] = []
    table = f"{decoder.prefix}embed_tokens"
    words = Row(decoder.table, math.sqrt(decoder.width))
    ledger.values.append(Value(table, "embedding", words, SQUARE_LIMIT, STREAM, table))
    start: Input = Either((words, *decoder.soft)) if decoder.soft else words
    extra = _own_inputs(ledger, decoder, start)
    streams = Either((start, *_projected(ledger, decoder, "altup_projections", start, STREAM)))
    stream: Input = streams
    for index in range(decoder.layers):
        stream = _layer(ledger, inner, decoder, index, stream, extra)
    ledger.inner(decoder.prefix.removesuffix("."), "first stream, squared", "altup", stream, limit=SQUARE_LIMIT)
    _projected(ledger, decoder, "altup_unembed_projections", stream, None)
    final = ledger.norm(f"{decoder.prefix}norm", decoder.width)
    ledger.logits("lm_head", decoder.table if decoder.tied else "lm_head.weight", final, decoder.text)
    return tuple(ledger.values), (_stream(decoder, ledger.values, start), *inner)


def _own_inputs(ledger: Ledger, decoder: Decoder, start: Input) -> Input:
    """What each layer gets beside the streams: of the token, and projected from the embedding."""
    prefix = decoder.prefix
    ledger.linear(f"{prefix}per_layer_model_projection", start)
    normed = ledger.norm(f"{prefix}per_layer_projection_norm", decoder.extra)
    table = f"{prefix}embed_tokens_per_layer"
    words = ledger.module(table, "embedding", Row(f"{table}.weight", math.sqrt(decoder.extra)))
    return ledger.inner(prefix.removesuffix("."), "inputs of the layers", "other", Sum((normed, words)))


def _projected(ledger: Ledger, decoder: Decoder, modules: str, source: Input, stream: str | None) -> list[Input]:
    """The other streams, or what is made of them at the end: projected, and brought to the first one's magnitude."""
    width, found = decoder.width, list[Input]()
    magnitude = Times(width**-0.5, Matched(source, source, width))
    for index in range(decoder.streams - 1):
        name = f"{decoder.prefix}{modules}.{index}"
        projected = Linear(f"{name}.weight", source)
        ledger.values.append(Value(name, "altup", projected, SQUARE_LIMIT, stream, name))
        ledger.inner(name, "times the magnitude", "altup", Weighted(magnitude, projected))
        found.append(Matched(projected, source, width))
    return found


def _layer(  # noqa: PLR0913, PLR0917  # what a layer reads, and where it is written down
    ledger: Ledger, inner: list[Rescaling], decoder: Decoder, index: int, stream: Input, extra: Input
) -> Input:
    name, width = decoder.layer(index), decoder.width
    predicted = _predicted(ledger, decoder, f"{name}.altup", stream)
    normed = ledger.norm(f"{name}.input_layernorm", width)
    laurel = _laurel(ledger, inner, decoder, name, normed)
    attended = _attention(ledger, inner, decoder, index, normed)
    both = Sum((Sum((predicted, attended)), laurel))
    half = Times(1 / math.sqrt(2), ledger.inner(name, "attention and LAuReL", "altup", both))
    fed = _feed_forward(ledger, inner, decoder, index)
    activated_stream = ledger.inner(name, "after feed-forward", "altup", Sum((half, fed)))
    corrected = _corrected(ledger, decoder, f"{name}.altup", predicted, activated_stream)
    written = _own_input(ledger, decoder, name, corrected, extra)
    return ledger.module(name, "altup", Sum((corrected, written)))


def _coefficients(ledger: Ledger, decoder: Decoder, name: str) -> Input:
    """Coefficients that are linear in the tanh of a router's output."""
    return ledger.linear(name, Within(1.0, decoder.streams, "tanh"))


def _predicted(ledger: Ledger, decoder: Decoder, name: str, stream: Input) -> Input:
    routed = ledger.norm(f"{name}.router_norm", decoder.width)
    ledger.linear(f"{name}.modality_router", Times(1 / decoder.width, routed))  # once more before the correction
    coefficients = _coefficients(ledger, decoder, f"{name}.prediction_coefs")
    mixed = Times(decoder.streams, Weighted(coefficients, stream))
    return ledger.inner(name, "predictions", "altup", Sum((mixed, stream)))


def _corrected(ledger: Ledger, decoder: Decoder, name: str, predicted: Input, activated_stream: Input) -> Input:
    coefficients = Sum((_coefficients(ledger, decoder, f"{name}.correction_coefs"), Within(1.0, 1, "one")))
    innovation = ledger.inner(name, "innovation", "altup", Sum((activated_stream, predicted)))
    return ledger.inner(name, "corrected", "altup", Sum((Weighted(coefficients, innovation), predicted)))


def _laurel(ledger: Ledger, inner: list[Rescaling], decoder: Decoder, layer: str, normed: Input) -> Input:
    name = f"{layer}.laurel"
    right = ledger.linear(f"{name}.linear_right", ledger.linear(f"{name}.linear_left", normed))
    written = ledger.norm(f"{name}.post_laurel_norm", decoder.width)
    inner.append(
        _absorbed(f"{name}.linear_left", (f"{name}.linear_right",), decoder, f"{name}.post_laurel_norm", right)
    )
    return ledger.inner(name, "with its input", "other", Sum((normed, written)))


def _attention(ledger: Ledger, inner: list[Rescaling], decoder: Decoder, index: int, normed: Input) -> Input:
    layer, text = decoder.layer(index), decoder.text
    name, bias, head = f"{layer}.self_attn", text.flag("attention_bias", default=False), text.extent("head_dim", 256)
    donor = decoder.layer(decoder.donors.get(index, index))
    for part in "q" if index in decoder.donors else "qkv":
        source = ledger.linear(f"{name}.{part}_proj", normed, bias=bias)
        inner.append(_absorbed(f"{name}.{part}_proj", (), decoder, f"{name}.{part}_norm", source, bias=bias))
    query = ledger.rotated(name, "query", text, ledger.norm(f"{name}.q_norm", head))
    key: Input = Rotated(AfterNorm(f"{donor}.self_attn.k_norm.weight", head))
    value = AfterNorm(None, head)
    if index not in decoder.donors:
        key = ledger.rotated(name, "key", text, ledger.norm(f"{name}.k_norm", head))
        ledger.module(f"{name}.v_norm", "norm", value)
    mixed = ledger.attention(name, text, Dot(query, key), value)
    output = ledger.linear(f"{name}.o_proj", mixed, bias=bias)
    inner.append(_absorbed(f"{name}.o_proj", (), decoder, f"{layer}.post_attention_layernorm", output, bias=bias))
    return ledger.norm(f"{layer}.post_attention_layernorm", decoder.width)


def _feed_forward(ledger: Ledger, inner: list[Rescaling], decoder: Decoder, index: int) -> Input:
    layer = decoder.layer(index)
    name, normed = f"{layer}.mlp", ledger.norm(f"{layer}.pre_feedforward_layernorm", decoder.width)
    gate, up = (ledger.linear(f"{name}.{part}_proj", normed) for part in ("gate", "up"))
    gate = _sparse(ledger, decoder, name, index, gate)
    down = ledger.gated(name, activated(decoder.text, "hidden_activation", gate), up)
    norm, product = f"{layer}.post_feedforward_layernorm", f"{name} (gate * up)"
    of_up = _absorbed(f"{name}.up_proj", (product,), decoder, norm, down)
    inner += [replace(of_up, behind=(f"{name}.down_proj",)), _absorbed(f"{name}.down_proj", (), decoder, norm, down)]
    return ledger.norm(f"{layer}.post_feedforward_layernorm", decoder.width)


def _sparse(ledger: Ledger, decoder: Decoder, name: str, index: int, gate: Input) -> Input:
    """A gate of which the largest remain: relu(x - (mean + std * z)); neither exceeds the largest magnitude."""
    usual = tuple(0.95 if decoder.layers > _SPARSE_LAYERS > layer else 0.0 for layer in range(decoder.layers))
    share = decoder.text.numbers("activation_sparsity_pattern", usual, 0.0, 1 - 2.0**-20)[index]
    if not share:
        return gate
    multiplier = abs(NormalDist().inv_cdf(share))
    return ledger.inner(name, "gate less its cutoff", "other", Times(2 + multiplier, gate))


def _own_input(ledger: Ledger, decoder: Decoder, layer: str, corrected: Input, extra: Input) -> Input:
    """The layer's own input, gated by the first stream."""
    if decoder.text.flag("altup_correct_scale", default=True):
        scale = f"{layer}.altup.correct_output_scale"
        corrected = ledger.inner(layer, "first stream, scaled", "altup", Scaled(scale, corrected))
    gate = ledger.linear(f"{layer}.per_layer_input_gate", corrected)
    product = Product(activated(decoder.text, "hidden_activation", gate), extra)
    ledger.linear(f"{layer}.per_layer_projection", ledger.inner(layer, "gate * own input", "product", product))
    return ledger.norm(f"{layer}.post_per_layer_input_norm", decoder.width)


def _absorbed(  # noqa: PLR0913  # a rescaling has as many parts
    name: str, behind: tuple[str, ...], decoder: Decoder, norm: str, source: Input, *, bias: bool = False
) -> Rescaling:
    """A weight whose factor a norm takes out; ``behind`` are the values between the weight's own and the norm."""
    smaller = (f"{name}.weight", f"{name}.bias") if bias else (f"{name}.weight",)
    return Rescaling(name, smaller, (), (name, *behind), (Reader(norm, decoder.eps, source),))


def _stream(decoder: Decoder, values: list[Value], start: Input) -> Rescaling:
    smaller, larger = [decoder.table], [f"{decoder.prefix}per_layer_model_projection.weight"]
    for index in range(decoder.layers):
        layer = decoder.layer(index)
        norms = ("input_layernorm", "laurel.post_laurel_norm", "post_attention_layernorm", "post_feedforward_layernorm")
        smaller += [f"{layer}.{norm}.weight" for norm in (*norms, "post_per_layer_input_norm")]
        projections = [f"self_attn.{part}_proj" for part in ("q" if index in decoder.donors else "qkv")]
        larger += [f"{layer}.{name}.weight" for name in (*projections, "laurel.linear_left", "per_layer_input_gate")]
    if decoder.tied:
        larger.append(f"{decoder.prefix}norm.weight")
    return Rescaling(
        name=STREAM,
        smaller=tuple(smaller),
        larger=tuple(larger),
        values=tuple(value.name for value in values if value.stream or value.kind == "altup"),
        readers=(Reader(f"{decoder.layer(0)}.altup.router_norm", decoder.eps, start),),
        refused=_SOFT if decoder.soft else None,
    )
