"""Gemma 3n: the text model alone, or with its image encoder and its audio tower.

Sources: transformers 5.23, modeling_gemma3n.py and configuration_gemma3n.py, with the defaults of its config
classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gemma_doctor.architectures import gemma3n_audio
from gemma_doctor.architectures.base import Expected, Family, KeyLayout, Model, Need, SharedKV, Value
from gemma_doctor.architectures.config import Section, config_dtype
from gemma_doctor.architectures.decoders import kv_donors, tied
from gemma_doctor.architectures.expressions import AfterNorm, Either, Input, Row, Times, Unbounded
from gemma_doctor.architectures.gemma3n_ranges import Decoder, ranges
from gemma_doctor.architectures.generic import guess_role
from gemma_doctor.architectures.ledger import Ledger
from gemma_doctor.architectures.limits import SQUARE_LIMIT
from gemma_doctor.architectures.mobilenetv5 import mobilenetv5
from gemma_doctor.architectures.pieces import Tensors, embedding, gated, linear, rms_norm, tied_head

__all__ = ["FAMILY"]

_MULTIMODAL = frozenset({"Gemma3nForConditionalGeneration", "Gemma3nModel"})
_TEXT = frozenset({"Gemma3nForCausalLM", "Gemma3nTextModel"})

_NORM = "Gemma3nRMSNorm"
_TABLE = "Gemma3nTextScaledWordEmbedding"
_ALTUP = "Gemma3nTextAltUp"

# Tried with transformers 4.53.3 and 5.23.0, which find all of these. vLLM's mapper (gemma3n_mm.py) renames model.*
# only, and llama.cpp's Gemma3nVisionAudioModel keeps model.vision_tower.* and model.embed_vision.* only.
_MULTIMODAL_LAYOUTS = (
    KeyLayout("Gemma 3n, as on the Hub", ()),
    KeyLayout(
        "Gemma 3n, without prefix",
        tuple(
            (f"{part}.", f"model.{part}.")
            for part in ("language_model", "vision_tower", "audio_tower", "embed_vision", "embed_audio")
        ),
        stale="vLLM and llama.cpp's converter, which look for model.*",
    ),
)
_TEXT_LAYOUTS = (
    KeyLayout("Gemma 3n text", ()),
    KeyLayout("Gemma 3n text, with the multimodal prefix", (("model.language_model.", "model."),)),
    KeyLayout(
        "Gemma 3n text, without prefix",
        tuple(
            (f"{part}.", f"model.{part}.")
            for part in (
                "per_layer_model_projection",
                "per_layer_projection_norm",
                "altup_unembed_projections",
                "embed_tokens_per_layer",
                "altup_projections",
                "embed_tokens",
                "layers",
                "norm",
            )
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the text config decides.

    Attributes:
        width: ``hidden_size``.
        inner: ``intermediate_size`` of every layer.
        extra: ``hidden_size_per_layer_input``.
        streams: ``altup_num_inputs``.
        donors: Sharing layer -> the layer whose keys and values it uses.
    """

    width: int
    inner: tuple[int, ...]
    extra: int
    streams: int
    donors: dict[int, int]


def _declare(config: Section) -> Model | None:
    names = config.texts("architectures") or ()
    text_only = any(name in _TEXT for name in names) or config.text("model_type") == "gemma3n_text"
    if text_only and not any(name in _MULTIMODAL for name in names):
        text = config.child("text_config") if "text_config" in config.values else config
        return _text_model("model.", config, text)
    return _multimodal_model(config)


FAMILY = Family(
    classes=_MULTIMODAL | _TEXT,
    model_types=frozenset({"gemma3n", "gemma3n_text"}),
    declare=_declare,
)


def _multimodal_model(config: Section) -> Model | None:
    """Text, image and audio; None where the image encoder is one that is not known."""
    vision, audio = config.child("vision_config"), config.child("audio_config")
    encoder = mobilenetv5("model.vision_tower.timm_model.", vision)
    if encoder is None:
        return None
    width = config.child("text_config").extent("hidden_size", 2048)
    soft = AfterNorm(None, width)
    model = _text_model("model.language_model.", config, config.child("text_config"), (soft,))
    towers = {
        **encoder.expected,
        **gemma3n_audio.audio_tower("model.audio_tower.", audio),
        **_embedder("model.embed_vision.", vision, vision.extent("hidden_size", 2048), width),
        **_embedder("model.embed_audio.", audio, gemma3n_audio.hidden_size(audio), width),
    }
    return Model(
        family=model.family,
        role=model.role,
        dtype=model.dtype,
        expected={**model.expected, **towers},
        convs={**encoder.convs, **gemma3n_audio.audio_convs("model.audio_tower.", audio)},
        shared_kv=model.shared_kv,
        tied_head=model.tied_head,
        pad_rows=model.pad_rows,
        layouts=_MULTIMODAL_LAYOUTS,
        values=(*encoder.values, *_soft_values(vision, audio, encoder.output, width), *model.values),
        rescalings=model.rescalings,
    )


def _soft_values(vision: Section, audio: Section, image: Input, width: int) -> tuple[Value, ...]:
    """What turns the towers' outputs into soft tokens; the audio tower itself is not analysed."""
    ledger, channels = Ledger(), vision.extent("hidden_size", 2048)
    ledger.inner("model", "image features * sqrt(channels)", "other", Times(math.sqrt(channels), image))
    ledger.module("model.audio_tower", "other", Unbounded("the audio tower is not analysed"))
    for tower, size in (("embed_vision", channels), ("embed_audio", gemma3n_audio.hidden_size(audio))):
        name = f"model.{tower}"
        ledger.module(f"{name}.embedding", "embedding", Row(f"{name}.embedding.weight"))
        normed = [ledger.norm(f"{name}.{kind}_embedding_norm", size) for kind in ("hard", "soft")]
        ledger.linear(f"{name}.embedding_projection", Either(tuple(normed)))
        ledger.values.append(Value(name, "norm", AfterNorm(None, width), SQUARE_LIMIT, module=name))
    return tuple(ledger.values)


def _text_model(prefix: str, config: Section, text: Section, soft: tuple[Input, ...] = ()) -> Model:
    shape = _shape(text)
    rows = text.extent("vocab_size", 262_400)
    known_rows = text.extent("vocab_size_per_layer_input", 262_144)
    table = f"{prefix}embed_tokens.weight"
    is_tied = tied(config, text, default=True)
    values, rescalings = ranges(Decoder(prefix, text, len(shape.inner), shape.donors, is_tied, soft))
    return Model(
        family="gemma3n",
        role=guess_role,
        dtype=config_dtype(config, text),
        expected={
            **_decoder(prefix, text, shape, rows, known_rows),
            **tied_head("lm_head", rows, shape.width, tied=is_tied),
        },
        shared_kv=_shared_kv(prefix, text, shape),
        tied_head=("lm_head.weight", table) if is_tied else None,
        # rows for image and audio tokens, which have tables of their own, are copies of the pad token's
        pad_rows={table: (known_rows, rows)} if known_rows < rows else {},
        layouts=_TEXT_LAYOUTS,
        values=values,
        rescalings=rescalings,
    )


def _shape(text: Section) -> _Shape:
    layers = text.repeats("num_hidden_layers", 35)
    return _Shape(
        width=text.extent("hidden_size", 2048),
        inner=text.extents("intermediate_size", 16_384, layers),
        extra=text.extent("hidden_size_per_layer_input", 256),
        streams=text.integer("altup_num_inputs", 4, 1, 64),
        donors=_donors(text, layers),
    )


def _donors(text: Section, layers: int) -> dict[int, int]:
    """Which layers share KV, and with which one: every fifth attends to everything, by default."""
    kinds = text.texts("layer_types")
    if kinds is None:
        kinds = tuple("full_attention" if layer % 5 == 4 else "sliding_attention" for layer in range(layers))  # noqa: PLR2004
    if len(kinds) != layers:
        text.refuse("layer_types", kinds, f"a list of num_hidden_layers, {layers}, strings")
    return kv_donors(text, kinds, 15)


def _decoder(prefix: str, text: Section, shape: _Shape, rows: int, known_rows: int) -> Tensors:
    layers, width = len(shape.inner), shape.width
    tensors = embedding(f"{prefix}embed_tokens", rows, width, _TABLE)
    for layer in range(layers):
        tensors |= _layer(f"{prefix}layers.{layer}.", text, shape, layer)
    tensors |= rms_norm(f"{prefix}norm", width, _NORM)
    tensors |= embedding(f"{prefix}embed_tokens_per_layer", known_rows, layers * shape.extra, _TABLE)
    tensors |= linear(f"{prefix}per_layer_model_projection", layers * shape.extra, width)
    tensors |= rms_norm(f"{prefix}per_layer_projection_norm", shape.extra, _NORM)
    for stream in range(shape.streams - 1):
        tensors |= linear(f"{prefix}altup_projections.{stream}", width, width)
        tensors |= linear(f"{prefix}altup_unembed_projections.{stream}", width, width)
    return tensors


def _layer(prefix: str, text: Section, shape: _Shape, layer: int) -> Tensors:
    width, inner = shape.width, shape.inner[layer]
    need: Need = "shared-kv" if layer in shape.donors else "required"
    tensors = _attention(f"{prefix}self_attn.", text, width, need)
    for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        tensors |= rms_norm(f"{prefix}{norm}_layernorm", width, _NORM)
    tensors |= gated(f"{prefix}mlp.", inner, width) | _altup(f"{prefix}altup.", shape)
    tensors |= _laurel(f"{prefix}laurel.", text, width)
    tensors |= linear(f"{prefix}per_layer_input_gate", shape.extra, width)
    tensors |= linear(f"{prefix}per_layer_projection", width, shape.extra)
    return tensors | rms_norm(f"{prefix}post_per_layer_input_norm", width, _NORM)


def _attention(prefix: str, text: Section, width: int, need: Need) -> Tensors:
    head, bias = text.extent("head_dim", 256), text.flag("attention_bias", default=False)
    queries = text.repeats("num_attention_heads", 8) * head
    values = text.repeats("num_key_value_heads", 2) * head
    return {
        **linear(f"{prefix}q_proj", queries, width, bias=bias),
        **linear(f"{prefix}k_proj", values, width, bias=bias, need=need),
        **linear(f"{prefix}v_proj", values, width, bias=bias, need=need),
        **linear(f"{prefix}o_proj", width, queries, bias=bias),
        **rms_norm(f"{prefix}q_norm", head, _NORM),
        **rms_norm(f"{prefix}k_norm", head, _NORM, need),
    }


def _altup(prefix: str, shape: _Shape) -> Tensors:
    streams, width = shape.streams, shape.width
    return {
        f"{prefix}correct_output_scale": Expected((width,), "other", _ALTUP),
        **linear(f"{prefix}correction_coefs", streams, streams),
        **linear(f"{prefix}prediction_coefs", streams**2, streams),
        **linear(f"{prefix}modality_router", streams, width),
        **rms_norm(f"{prefix}router_norm", width, _NORM),
    }


def _laurel(prefix: str, text: Section, width: int) -> Tensors:
    rank = text.extent("laurel_rank", 64)
    return {
        **linear(f"{prefix}linear_left", rank, width),
        **linear(f"{prefix}linear_right", width, rank),
        **rms_norm(f"{prefix}post_laurel_norm", width, _NORM),
    }


def _embedder(prefix: str, tower: Section, channels: int, width: int) -> Tensors:
    """Gemma3nMultimodalEmbedder: a small table of its own, and the way into the text model."""
    return {
        **embedding(f"{prefix}embedding", tower.extent("vocab_size", 128), channels),
        **rms_norm(f"{prefix}hard_embedding_norm", channels, _NORM),
        **rms_norm(f"{prefix}soft_embedding_norm", channels, _NORM),
        **linear(f"{prefix}embedding_projection", width, channels),
    }


def _shared_kv(prefix: str, text: Section, shape: _Shape) -> dict[str, SharedKV]:
    """The tensors that a sharing layer may hold and does not use."""
    return {
        name: SharedKV(layer, donor)
        for layer, donor in shape.donors.items()
        for name, tensor in _attention(f"{prefix}layers.{layer}.self_attn.", text, shape.width, "shared-kv").items()
        if tensor.need == "shared-kv"
    }
