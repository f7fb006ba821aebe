"""Gemma 3: the text model, and the multimodal one with SigLIP's vision tower.

Sources: transformers 5.23, modeling_gemma3.py and configuration_gemma3.py. The configs on the Hub are sparse,
so the defaults of those config classes are part of the declaration.
"""

from __future__ import annotations

from gemma_doctor.architectures.base import Expected, Family, KeyLayout, Model, Value
from gemma_doctor.architectures.config import Section, config_dtype
from gemma_doctor.architectures.expressions import AfterNorm, Input, Linear, Unbounded
from gemma_doctor.architectures.gemma3_ranges import STREAM, Decoder, ranges
from gemma_doctor.architectures.generic import guess_role
from gemma_doctor.architectures.ledger import Ledger
from gemma_doctor.architectures.pieces import Tensors, embedding, linear, rms_norm, tied_head
from gemma_doctor.architectures.siglip import hidden_size, patch_conv, siglip, siglip_values

__all__ = ["FAMILY"]

_MULTIMODAL = frozenset({"Gemma3ForConditionalGeneration", "Gemma3Model", "Gemma3ForSequenceClassification"})
_TEXT = frozenset({"Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"})
_BARE = "Gemma3TextModel"

_LANGUAGE, _TOWER, _PROJECTOR = "language_model.model.", "vision_tower.vision_model.", "multi_modal_projector."
_HEAD = ("lm_head.", "language_model.lm_head.")

# Which transformers finds which names was tried with 4.53.3 and 5.23.0: a missing name is initialised at random,
# with no more than a warning. llama.cpp: Gemma3VisionModel in convert_hf_to_gguf.py keeps vision_tower.* only.
_MULTIMODAL_LAYOUTS = (
    KeyLayout("Gemma 3 multimodal, as on the Hub", (_HEAD,)),
    KeyLayout(
        "Gemma 3 multimodal, state dict of transformers 4.52 and later",
        (
            ("model.vision_tower.vision_model.", _TOWER),
            ("model.multi_modal_projector.", _PROJECTOR),
            ("model.language_model.", _LANGUAGE),
            _HEAD,
        ),
        stale="transformers before 4.52 and llama.cpp's converter, which skips model.vision_tower.*",
    ),
    KeyLayout(
        "Gemma 3 multimodal, saved by transformers 5 from a fresh config",
        (("vision_tower.", _TOWER), _HEAD),
        stale="transformers 4.53, which looks for vision_tower.vision_model.*",
    ),
    KeyLayout(
        "Gemma 3 multimodal, state dict of transformers 5",
        (
            ("model.multi_modal_projector.", _PROJECTOR),
            ("model.language_model.", _LANGUAGE),
            ("model.vision_tower.", _TOWER),
            _HEAD,
        ),
        stale="transformers 4.53, which looks for vision_tower.vision_model.*",
    ),
)
_TEXT_LAYOUTS = (
    KeyLayout("Gemma 3 text, as on the Hub", ()),
    KeyLayout(
        "Gemma 3 text, with the multimodal prefix",
        (("language_model.lm_head.", "lm_head."), (_LANGUAGE, "model.")),
        stale="transformers 5, which reads a text-only config's tensors from model.* (4.53 finds them)",
    ),
    KeyLayout(
        "Gemma 3 text, without prefix",
        (
            ("embed_tokens.", "model.embed_tokens."),
            ("layers.", "model.layers."),
            ("norm.", "model.norm."),
        ),
        stale="transformers 4.53, which looks for model.*",
    ),
)
_BARE_LAYOUTS = (
    KeyLayout("Gemma 3 text model without a head, as on the Hub", ()),
    KeyLayout(
        "Gemma 3 text model without a head, with prefix",
        (("model.", ""),),
        stale="transformers 4.53, which looks for names without model.",
    ),
)


def _declare(config: Section) -> Model:
    """The multimodal model, the text model, or (EmbeddingGemma) the text model without its head."""
    names = config.texts("architectures") or ()
    if _BARE in names:
        return _text_model(config, "", _BARE_LAYOUTS)
    text_only = any(name in _TEXT for name in names) or config.text("model_type") == "gemma3_text"
    if text_only and not any(name in _MULTIMODAL for name in names):
        return _text_model(config, "model.", _TEXT_LAYOUTS)
    return _multimodal_model(config)


FAMILY = Family(
    classes=_MULTIMODAL | _TEXT | {_BARE},
    model_types=frozenset({"gemma3", "gemma3_text"}),
    declare=_declare,
)


def _text_model(config: Section, prefix: str, layouts: tuple[KeyLayout, ...]) -> Model:
    text = config.child("text_config") if "text_config" in config.values else config
    head = "lm_head" if prefix else None
    tensors, tied = _text(prefix, head, text, tied=_is_tied(config, text))
    classifier = _classifier(config)
    values, rescalings = ranges(Decoder(prefix, text, None if classifier else head, tied is not None))
    return Model(
        family="gemma3",
        role=guess_role,
        dtype=config_dtype(config, text),
        expected=tensors,
        tied_head=tied,
        layouts=layouts,
        values=(*values, *classifier),
        rescalings=rescalings,
    )


def _multimodal_model(config: Section) -> Model:
    text, vision = config.child("text_config"), config.child("vision_config")
    head = "language_model.lm_head"
    tensors, tied = _text(_LANGUAGE, head, text, tied=_is_tied(config, text))
    tensors |= siglip(_TOWER, vision) | _projector(text, vision)
    seen, image = _image_values(vision)
    classifier = _classifier(config)
    decoder = Decoder(
        _LANGUAGE,
        text,
        None if classifier else head,
        tied is not None,
        (image, f"{_PROJECTOR}mm_input_projection_weight"),
    )
    values, rescalings = ranges(decoder)
    return Model(
        family="gemma3",
        role=guess_role,
        dtype=config_dtype(config, text),
        expected=tensors,
        convs=patch_conv(_TOWER, vision),
        tied_head=tied,
        layouts=_MULTIMODAL_LAYOUTS,
        values=(*seen, *values, *classifier),
        rescalings=rescalings,
    )


def _classifier(config: Section) -> tuple[Value, ...]:
    """The head of a sequence classifier, in place of lm_head: nothing is declared about it."""
    names = config.texts("architectures") or ()
    if not any(name.endswith("ForSequenceClassification") for name in names):
        return ()
    return (Value("score", "linear", Unbounded("a classifier's head is not analysed"), module="score"),)


def _image_values(vision: Section) -> tuple[tuple[Value, ...], Input]:
    """What the encoder and the projector write, and what a soft token is made of."""
    values, _ = siglip_values(_TOWER, vision)
    ledger, channels, norm = Ledger(), hidden_size(vision), f"{_PROJECTOR}mm_soft_emb_norm"
    ledger.norm(norm, channels, plus_one=True)
    normed = AfterNorm(f"{norm}.weight", channels, plus_one=True)
    soft = Linear(f"{_PROJECTOR}mm_input_projection_weight", normed, inputs=channels)
    ledger.state(_PROJECTOR.removesuffix("."), STREAM, soft, module=_PROJECTOR.removesuffix("."))
    return (*values, *ledger.values), soft


def _is_tied(config: Section, text: Section) -> bool:
    """Whether the head is the embedding: transformers 5 asks the top level, 4 the text section."""
    return config.flag("tie_word_embeddings", default=text.flag("tie_word_embeddings", default=True))


def _text(prefix: str, head: str | None, text: Section, *, tied: bool) -> tuple[Tensors, tuple[str, str] | None]:
    """The decoder's tensors, and (head, embedding) where they are tied."""
    width, rows = text.extent("hidden_size", 2304), text.extent("vocab_size", 262_208)
    tensors = embedding(f"{prefix}embed_tokens", rows, width, "Gemma3TextScaledWordEmbedding")
    for layer in range(text.repeats("num_hidden_layers", 26)):
        tensors |= _layer(f"{prefix}layers.{layer}.", text, width)
    tensors |= _norm(f"{prefix}norm", width)
    if head is None:
        return tensors, None
    tensors |= tied_head(head, rows, width, tied=tied)
    return tensors, (f"{head}.weight", f"{prefix}embed_tokens.weight") if tied else None


def _layer(prefix: str, text: Section, width: int) -> Tensors:
    inner = text.extent("intermediate_size", 9216)
    tensors = _norm(f"{prefix}input_layernorm", width) | _attention(f"{prefix}self_attn.", text, width)
    for norm in ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"):
        tensors |= _norm(f"{prefix}{norm}", width)
    tensors |= linear(f"{prefix}mlp.gate_proj", inner, width) | linear(f"{prefix}mlp.up_proj", inner, width)
    return tensors | linear(f"{prefix}mlp.down_proj", width, inner)


def _attention(prefix: str, text: Section, width: int) -> Tensors:
    head, bias = text.extent("head_dim", 256), text.flag("attention_bias", default=False)
    queries = text.repeats("num_attention_heads", 8) * head
    values = text.repeats("num_key_value_heads", 4) * head
    return {
        **linear(f"{prefix}q_proj", queries, width, bias=bias),
        **linear(f"{prefix}k_proj", values, width, bias=bias),
        **linear(f"{prefix}v_proj", values, width, bias=bias),
        **linear(f"{prefix}o_proj", width, queries, bias=bias),
        **_norm(f"{prefix}q_norm", head),
        **_norm(f"{prefix}k_norm", head),
    }


def _projector(text: Section, vision: Section) -> Tensors:
    channels = hidden_size(vision)
    shape = (channels, text.extent("hidden_size", 2304))
    weight = Expected(shape, "linear", "Gemma3MultiModalProjector", rows="inputs")
    return {
        f"{_PROJECTOR}mm_input_projection_weight": weight,
        **_norm(f"{_PROJECTOR}mm_soft_emb_norm", channels),
    }


def _norm(module: str, channels: int) -> Tensors:
    """Gemma 3's RMS norm, which multiplies by 1 + w."""
    return rms_norm(module, channels, "Gemma3RMSNorm", plus_one=True)
