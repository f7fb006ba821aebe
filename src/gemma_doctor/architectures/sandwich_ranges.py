"""What a float16 run of Gemma 2 or 3 writes, and how it can be rescaled.

Source: transformers 5.23, modeling_gemma2.py and modeling_gemma3.py. Both have a norm before and one behind attention
and feed-forward, and the same defaults. Gemma 2 has no norms of queries and keys, so that nothing takes a factor out of
its scores, and it caps them, which its eager attention does in float16.

Every norm computes in float32 and multiplies by 1 + w, so what it reads may be multiplied by a power of two without
changing what it gives, but for its eps. The residual stream is read by norms only, and written by the embedding, the
projector and the norms behind attention and feed-forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gemma_doctor.architectures.base import Reader, Rescaling, SharedEps, Value
from gemma_doctor.architectures.config import Section
from gemma_doctor.architectures.expressions import AfterNorm, Dot, Either, Input, Row, Slice, Sum, Times
from gemma_doctor.architectures.ledger import Ledger, activated

__all__ = ["STREAM", "Decoder", "ranges"]

STREAM = "the residual stream"
"""How messages call it."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """Where the text model lies, and what surrounds it.

    Attributes:
        prefix: What its tensors' names start with.
        text: The text config.
        head: Name of the head's module; None where it has none, or one that is not declared.
        tied: Whether the head is the embedding.
        images: What soft tokens of images are made of, and the name of the weight that writes them; None without.
        head_norms: Whether queries and keys are normalised head by head.
        eager: Whether attention is eager by default, so that every run writes its scores.
    """

    prefix: str
    text: Section
    head: str | None
    tied: bool
    images: tuple[Input, str] | None = None
    head_norms: bool = True
    eager: bool = False

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return self.text.extent("hidden_size", 2304)

    @property
    def eps(self) -> float:
        """Of every norm."""
        return self.text.number("rms_norm_eps", 1e-6, 0.0, 1.0)

    @property
    def table(self) -> str:
        """The embedding."""
        return f"{self.prefix}embed_tokens.weight"


def ranges(decoder: Decoder) -> tuple[tuple[Value, ...], tuple[Rescaling, ...]]:
    """Every value that the text model writes in float16, and everything in it that can be rescaled.

    Args:
        decoder: The text model.
    """
    ledger = Ledger()
    inner: list[Rescaling] = []
    words = ledger.state(
        f"{decoder.prefix}embed_tokens",
        STREAM,
        Row(decoder.table, math.sqrt(decoder.width)),
        module=f"{decoder.prefix}embed_tokens",
    )
    start = words if decoder.images is None else Either((words, decoder.images[0]))
    stream: Input = start
    for layer in range(decoder.text.repeats("num_hidden_layers", 26)):
        stream = _layer(ledger, inner, decoder, f"{decoder.prefix}layers.{layer}", stream)
    final = ledger.norm(f"{decoder.prefix}norm", decoder.width, plus_one=True)
    if decoder.head is not None:
        weight = decoder.table if decoder.tied else f"{decoder.head}.weight"
        ledger.logits(decoder.head, weight, final, decoder.text)
    return tuple(ledger.values), (_stream(decoder, ledger.values, start), *inner)


def _layer(ledger: Ledger, inner: list[Rescaling], decoder: Decoder, name: str, stream: Input) -> Input:
    ledger.norm(f"{name}.input_layernorm", decoder.width, plus_one=True)
    _attention(ledger, inner, decoder, name)
    written = ledger.norm(f"{name}.post_attention_layernorm", decoder.width, plus_one=True)
    stream = ledger.state(f"{name} (after attention)", STREAM, Sum((stream, written)))
    ledger.norm(f"{name}.pre_feedforward_layernorm", decoder.width, plus_one=True)
    _feed_forward(ledger, inner, decoder, name)
    written = ledger.norm(f"{name}.post_feedforward_layernorm", decoder.width, plus_one=True)
    return ledger.state(name, STREAM, Sum((stream, written)), module=name)


def _attention(ledger: Ledger, inner: list[Rescaling], decoder: Decoder, layer: str) -> None:
    name, text = f"{layer}.self_attn", decoder.text
    normed = AfterNorm(f"{layer}.input_layernorm.weight", decoder.width, plus_one=True)
    bias, head = text.flag("attention_bias", default=False), text.extent("head_dim", 256)
    query, key, value = (ledger.linear(f"{name}.{part}_proj", normed, bias=bias) for part in "qkv")
    if decoder.head_norms:
        heads = [ledger.norm(f"{name}.{part}_norm", head, plus_one=True) for part in "qk"]
    else:
        heads = [Slice(projected, head) for projected in (query, key)]
    turned = [ledger.rotated(name, what, text, one) for what, one in zip(("query", "key"), heads, strict=True)]
    mixed = ledger.attention(name, text, _scores(text, turned[0], turned[1]), value, eager=decoder.eager)
    output = ledger.linear(f"{name}.o_proj", mixed, bias=bias)
    for part, source in (("q", query), ("k", key)) if decoder.head_norms else ():
        reader = Reader(f"{name}.{part}_norm.weight", decoder.eps, source)
        inner.append(_absorbed(f"{name}.{part}_proj", reader, bias=bias))
    reader = Reader(f"{layer}.post_attention_layernorm.weight", decoder.eps, output)
    mix, behind = f"{name} (mix of values)", f"{name}.o_proj"
    inner.append(_absorbed(f"{name}.v_proj", reader, (mix,), behind, bias=bias))
    inner.append(_absorbed(behind, reader, bias=bias))


def _scores(text: Section, query: Input, key: Input) -> Input:
    """The scores: a product, scaled, and divided by the cap of a tanh where there is one."""
    scaling = text.number("query_pre_attn_scalar", 256, 1e-6, 1e9) ** -0.5
    scaled = Times(max(1.0, scaling), Dot(query, key))
    cap = text.number("attn_logit_softcapping", 1.0, 1e-6, 1e6)
    return scaled if cap >= 1 else Times(1 / cap, scaled)


def _feed_forward(ledger: Ledger, inner: list[Rescaling], decoder: Decoder, layer: str) -> None:
    name = f"{layer}.mlp"
    normed = AfterNorm(f"{layer}.pre_feedforward_layernorm.weight", decoder.width, plus_one=True)
    gate, up = (ledger.linear(f"{name}.{part}_proj", normed) for part in ("gate", "up"))
    down = ledger.gated(name, activated(decoder.text, "hidden_activation", gate), up)
    reader = Reader(f"{layer}.post_feedforward_layernorm.weight", decoder.eps, down)
    product, behind = f"{name} (gate * up)", f"{name}.down_proj"
    inner.append(_absorbed(f"{name}.up_proj", reader, (product,), behind))
    inner.append(_absorbed(behind, reader))


def _absorbed(
    name: str, reader: Reader, written: tuple[str, ...] = (), behind: str | None = None, *, bias: bool = False
) -> Rescaling:
    """A weight whose factor a norm takes out.

    Args:
        name: The weight's module.
        reader: The norm.
        written: What shrinks with its output.
        behind: The module between it and the norm that has a rescaling of its own.
        bias: Whether both have biases, which shrink with them.
    """
    biases = tuple(f"{module}.bias" for module in (name, behind) if bias and module)
    return Rescaling(
        name, (f"{name}.weight", *biases), (), (name, *written), (reader,), behind=(behind,) if behind else ()
    )


def _stream(decoder: Decoder, values: list[Value], start: Input) -> Rescaling:
    """The residual stream: its writers shrink, and the final norm makes up for a head that shrinks with them."""
    layers = [f"{decoder.prefix}layers.{layer}." for layer in range(decoder.text.repeats("num_hidden_layers", 26))]
    writers = [
        f"{layer}{norm}.weight"
        for layer in layers
        for norm in ("post_attention_layernorm", "post_feedforward_layernorm")
    ]
    images = () if decoder.images is None else (decoder.images[1],)
    written = [value.name for value in values if value.stream]
    return Rescaling(
        name=STREAM,
        smaller=(decoder.table, *images, *writers),
        larger=(f"{decoder.prefix}norm.weight",) if decoder.head is not None and decoder.tied else (),
        values=(*written, *(name.rpartition(".")[0] for name in (*images, *writers))),
        readers=(Reader(f"{layers[0]}input_layernorm.weight", decoder.eps, start),),
        eps=_shared_eps(decoder, layers),
    )


def _shared_eps(decoder: Decoder, layers: list[str]) -> SharedEps | None:
    """What the norms read that do not read the stream: queries, keys, and the outputs of the two blocks of a layer.

    All norms of the text model have one eps (modeling_gemma3.py; the projector's norm has that of the image encoder).
    """
    text = decoder.text
    if not text.values:
        return None  # the config lacks the section that would hold it
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj")[0 if decoder.head_norms else 2 :]
    biased = text.flag("attention_bias", default=False)
    read = [f"{layer}{part}" for layer in layers for part in attention]
    down = [f"{layer}mlp.down_proj" for layer in layers]
    return SharedEps(
        path=(*text.path.split(".")[:-1], "rms_norm_eps"),
        smaller=tuple(f"{name}.{part}" for name in read for part in ("weight", "bias")[: 1 + biased])
        + tuple(f"{name}.weight" for name in down),
        values=(*read, *down),
    )
