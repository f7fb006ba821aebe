"""Gemma 4: the text model alone, or with its image and audio towers.

Sources: transformers 5.23, modeling_gemma4.py and configuration_gemma4.py, with the defaults of its config classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gemma_doctor.architectures import gemma4_towers as towers
from gemma_doctor.architectures.base import Expected, Family, KeyLayout, Model, Need, SharedKV
from gemma_doctor.architectures.config import MAX_EXTENT, Section, config_dtype
from gemma_doctor.architectures.decoders import SANDWICH_NORMS, kv_donors, tied
from gemma_doctor.architectures.generic import guess_role
from gemma_doctor.architectures.pieces import Tensors, embedding, gated, linear, rms_norm, tied_head

__all__ = ["FAMILY"]

_MULTIMODAL, _TEXT = "Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"
_FULL = "full_attention"
_LAYER, _NORM, _TABLE = "Gemma4TextDecoderLayer", towers.NORM, "Gemma4TextScaledWordEmbedding"


@dataclass(frozen=True, slots=True)
class _Attention:
    """One layer's attention.

    Attributes:
        head: Channels of a head: layers that attend to everything have wider ones.
        groups: Heads of keys and values.
        values: Whether it has a ``v_proj``; without one the keys are the values.
        donor: The layer whose keys and values it uses; None where it has its own.
    """

    head: int
    groups: int
    values: bool
    donor: int | None


def _declare(config: Section) -> Model | None:
    """The multimodal model or the text model; None for a class of another shape."""
    names = config.texts("architectures") or ()
    if any(name.startswith("Gemma4") and name not in {_MULTIMODAL, _TEXT} for name in names):
        return None
    if _MULTIMODAL not in names and (_TEXT in names or config.text("model_type") == "gemma4_text"):
        return _text_model("model.", config, config.child("text_config") if "text_config" in config.values else config)
    return _multimodal_model(config)


FAMILY = Family(
    classes=frozenset({_MULTIMODAL, _TEXT}),
    model_types=frozenset({"gemma4", "gemma4_text"}),
    declare=_declare,
)


def _multimodal_model(config: Section) -> Model:
    """The text model with the towers that have a section in the config; none has by default."""
    text = config.child("text_config")
    model, width = _text_model("model.language_model.", config, text), text.extent("hidden_size", 2304)
    expected, convs = dict(model.expected), dict(model.convs)
    vision, audio = config.child("vision_config"), config.child("audio_config")
    if config.values.get("vision_config") is not None:
        expected |= towers.vision_tower("model.vision_tower.", vision)
        expected |= linear("model.embed_vision.embedding_projection", width, vision.extent("hidden_size", 768))
    if config.values.get("audio_config") is not None:
        expected |= towers.audio_tower("model.audio_tower.", audio)
        expected |= linear("model.embed_audio.embedding_projection", width, audio.extent("output_proj_dims", 1536))
        convs |= towers.audio_convs("model.audio_tower.", audio)
    return replace(model, expected=expected, convs=convs, layouts=(KeyLayout("Gemma 4, as on the Hub", ()),))


def _text_model(prefix: str, config: Section, text: Section) -> Model:
    layers = _layers(text)
    rows, width = text.extent("vocab_size", 262_144), text.extent("hidden_size", 2304)
    is_tied = tied(config, text, default=True)
    tensors = embedding(f"{prefix}embed_tokens", rows, width, _TABLE)
    for index, layer in enumerate(layers):
        tensors |= _layer(f"{prefix}layers.{index}.", text, layer, width)
    tensors |= rms_norm(f"{prefix}norm", width, _NORM) | _per_layer_inputs(prefix, text, len(layers), width)
    return Model(
        family="gemma4",
        role=guess_role,
        dtype=config_dtype(config, text),
        expected=tensors | tied_head("lm_head", rows, width, tied=is_tied),
        shared_kv=_shared_kv(prefix, text, layers, width),
        tied_head=("lm_head.weight", f"{prefix}embed_tokens.weight") if is_tied else None,
        layouts=(KeyLayout("Gemma 4 text, as on the Hub", ()),),
    )


def _layers(text: Section) -> tuple[_Attention, ...]:
    """The attention of each layer: every sixth attends to everything by default, and the last one always does."""
    count = text.repeats("num_hidden_layers", 30)
    kinds = text.texts("layer_types")
    if kinds is None:
        kinds = tuple(_FULL if layer % 6 == 5 else "sliding_attention" for layer in range(count))  # noqa: PLR2004
    if len(kinds) != count:
        text.refuse("layer_types", kinds, f"a list of num_hidden_layers, {count}, strings")
    kinds = (*kinds[:-1], _FULL)
    donors = kv_donors(text, kinds, 0)
    return tuple(_attention_of(text, layer, kind, donors.get(layer)) for layer, kind in enumerate(kinds))


def _attention_of(text: Section, layer: int, kind: str, donor: int | None) -> _Attention:
    """What the config says of one layer.

    The configs on the Hub have ``global_head_dim`` and ``num_global_key_value_heads`` for the layers that attend to
    everything; transformers 5.23 writes the same as ``per_layer_config``, by layer.
    """
    head, groups = text.extent("head_dim", 256), text.repeats("num_key_value_heads", 4)
    same, full = text.flag("attention_k_eq_v", default=False), kind == _FULL
    if text.values.get("per_layer_config") is not None:
        own = text.child("per_layer_config").child(str(layer))
        head, groups = own.extent("head_dim", head), own.repeats("num_key_value_heads", groups)
    elif full:
        head = text.extent("global_head_dim", 512)
        groups = text.repeats("num_global_key_value_heads", groups) if same else groups
    return _Attention(head, groups, values=not (same and full), donor=donor)


def _layer(prefix: str, text: Section, layer: _Attention, width: int) -> Tensors:
    tensors = rms_norm(f"{prefix}input_layernorm", width, _NORM)
    tensors |= _attention(f"{prefix}self_attn.", text, layer, width)
    for norm in SANDWICH_NORMS:
        tensors |= rms_norm(f"{prefix}{norm}", width, _NORM)
    doubled = layer.donor is not None and text.flag("use_double_wide_mlp", default=False)
    tensors |= gated(f"{prefix}mlp.", text.extent("intermediate_size", 9216) * (2 if doubled else 1), width)
    tensors[f"{prefix}layer_scalar"] = Expected((1,), "other", _LAYER)
    extra = _extra(text)
    if extra:
        tensors |= linear(f"{prefix}per_layer_input_gate", extra, width)
        tensors |= linear(f"{prefix}per_layer_projection", width, extra)
        tensors |= rms_norm(f"{prefix}post_per_layer_input_norm", width, _NORM)
    return tensors | _experts(prefix, text, width)


def _attention(prefix: str, text: Section, layer: _Attention, width: int) -> Tensors:
    bias = text.flag("attention_bias", default=False)
    queries, keys = text.repeats("num_attention_heads", 8) * layer.head, layer.groups * layer.head
    need: Need = "required" if layer.donor is None else "shared-kv"
    return {
        **linear(f"{prefix}q_proj", queries, width, bias=bias),
        **linear(f"{prefix}k_proj", keys, width, bias=bias, need=need),
        **(linear(f"{prefix}v_proj", keys, width, bias=bias, need=need) if layer.values else {}),
        **linear(f"{prefix}o_proj", width, queries, bias=bias),
        **rms_norm(f"{prefix}q_norm", layer.head, _NORM),
        **rms_norm(f"{prefix}k_norm", layer.head, _NORM, need),
    }


def _experts(prefix: str, text: Section, width: int) -> Tensors:
    """The mixture of experts beside the feed-forward, where there is one."""
    if not text.flag("enable_moe_block", default=False):
        return {}
    experts, inner = text.extent("num_experts", 128), text.extent("moe_intermediate_size", 704)
    kind = "Gemma4TextExperts"
    tensors: Tensors = {
        f"{prefix}router.scale": Expected((width,), "other", "Gemma4TextRouter"),
        f"{prefix}router.per_expert_scale": Expected((experts,), "other", "Gemma4TextRouter"),
        **linear(f"{prefix}router.proj", experts, width),
        f"{prefix}experts.gate_up_proj": Expected((experts, 2 * inner, width), "linear", kind, rows="experts"),
        f"{prefix}experts.down_proj": Expected((experts, width, inner), "linear", kind, rows="experts"),
    }
    for norm in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
        tensors |= rms_norm(f"{prefix}{norm}", width, _NORM)
    return tensors


def _extra(text: Section) -> int:
    """``hidden_size_per_layer_input``: 0 where layers have no inputs of their own."""
    return text.integer("hidden_size_per_layer_input", 256, 0, MAX_EXTENT)


def _per_layer_inputs(prefix: str, text: Section, layers: int, width: int) -> Tensors:
    """The second table, which holds an embedding for every layer, and what turns the first one's into the like."""
    extra = _extra(text)
    if not extra:
        return {}
    rows = text.extent("vocab_size_per_layer_input", 262_144)
    return {
        **embedding(f"{prefix}embed_tokens_per_layer", rows, layers * extra, _TABLE),
        **linear(f"{prefix}per_layer_model_projection", layers * extra, width),
        **rms_norm(f"{prefix}per_layer_projection_norm", extra, _NORM),
    }


def _shared_kv(prefix: str, text: Section, layers: tuple[_Attention, ...], width: int) -> dict[str, SharedKV]:
    """The tensors that a sharing layer may hold and does not use."""
    return {
        name: SharedKV(index, layer.donor)
        for index, layer in enumerate(layers)
        if layer.donor is not None
        for name, tensor in _attention(f"{prefix}layers.{index}.self_attn.", text, layer, width).items()
        if tensor.need == "shared-kv"
    }
