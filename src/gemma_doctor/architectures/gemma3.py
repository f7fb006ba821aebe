"""Gemma 3: the text model, and the multimodal one with SigLIP's vision tower.

Sources: transformers 5.23, modeling_gemma3.py and configuration_gemma3.py. The configs on the Hub are sparse,
so the defaults of those config classes are part of the declaration.
"""

from __future__ import annotations

from gemma_doctor.architectures.base import Expected, Family, KeyLayout, Model, Value
from gemma_doctor.architectures.config import Section, config_dtype
from gemma_doctor.architectures.decoders import SANDWICH_NORMS, Form, decoder
from gemma_doctor.architectures.decoders import tied as is_tied
from gemma_doctor.architectures.expressions import AfterNorm, Input, Linear, Unbounded
from gemma_doctor.architectures.generic import guess_role
from gemma_doctor.architectures.ledger import Ledger
from gemma_doctor.architectures.pieces import Tensors, rms_norm
from gemma_doctor.architectures.sandwich_ranges import STREAM, Decoder, ranges
from gemma_doctor.architectures.siglip import (
    hidden_size,
    patch_conv,
    siglip,
    siglip_layouts,
    siglip_rescaling,
    siglip_values,
)

__all__ = ["FAMILY"]

_MULTIMODAL = frozenset({"Gemma3ForConditionalGeneration", "Gemma3Model", "Gemma3ForSequenceClassification"})
_TEXT = frozenset({"Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"})
_BARE = "Gemma3TextModel"

_FORM = Form(
    family="gemma3",
    stem="Gemma3",
    norm="Gemma3RMSNorm",
    table="Gemma3TextScaledWordEmbedding",
    rows=262_208,
    width=2304,
    inner=9216,
    layers=26,
    heads=8,
    groups=4,
    head=256,
    tied=True,
    norms=SANDWICH_NORMS,
    plus_one=True,
    head_norms=True,
)

_LANGUAGE, _TOWER, _PROJECTOR = "language_model.model.", "vision_tower.vision_model.", "multi_modal_projector."

_MULTIMODAL_LAYOUTS = siglip_layouts(
    "Gemma 3 multimodal", " and llama.cpp's converter, which skips model.vision_tower.*"
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
    tensors, tied = _text(prefix, head, text, tied=is_tied(config, text, default=_FORM.tied))
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
    tensors, tied = _text(_LANGUAGE, head, text, tied=is_tied(config, text, default=_FORM.tied))
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
        rescalings=(*rescalings, siglip_rescaling(_TOWER, vision, seen)),
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


def _text(prefix: str, head: str | None, text: Section, *, tied: bool) -> tuple[Tensors, tuple[str, str] | None]:
    """The decoder's tensors, and (head, embedding) where they are tied."""
    tensors = decoder(_FORM, prefix, text, head, tied=tied)
    return tensors, (f"{head}.weight", f"{prefix}embed_tokens.weight") if tied and head else None


def _projector(text: Section, vision: Section) -> Tensors:
    channels = hidden_size(vision)
    shape = (channels, text.extent("hidden_size", _FORM.width))
    weight = Expected(shape, "linear", "Gemma3MultiModalProjector", rows="inputs")
    return {
        f"{_PROJECTOR}mm_input_projection_weight": weight,
        **rms_norm(f"{_PROJECTOR}mm_soft_emb_norm", channels, _FORM.norm, plus_one=True),
    }
