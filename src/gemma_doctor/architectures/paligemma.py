"""PaliGemma 1 and 2: SigLIP's tower before Gemma 1 or 2 (transformers 5.23, modeling_paligemma.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_doctor.architectures import gemma, gemma2
from gemma_doctor.architectures.base import Family, Model
from gemma_doctor.architectures.config import Section, config_dtype
from gemma_doctor.architectures.decoders import decoder, tied
from gemma_doctor.architectures.generic import guess_role
from gemma_doctor.architectures.pieces import linear
from gemma_doctor.architectures.siglip import hidden_size, patch_conv, siglip, siglip_layouts

__all__ = ["FAMILY"]

_FORMS = {form.family: form for form in (gemma.FORM, gemma2.FORM)}

_TEXT = {
    "hidden_size": 2048,
    "num_hidden_layers": 18,
    "intermediate_size": 16_384,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "vocab_size": 257_152,
}
_VISION = {
    "intermediate_size": 4096,
    "hidden_size": 1152,
    "patch_size": 14,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "vision_use_head": False,
}
"""What stands for a section that is absent as a whole (configuration_paligemma.py)."""

_CLASS = "PaliGemmaForConditionalGeneration"
_TOWER, _TABLE, _HEAD = "vision_tower.vision_model.", "language_model.model.", "language_model.lm_head"


def _declare(config: Section) -> Model | None:
    """Tower, projector and decoder; None without a head, and where the decoder is neither Gemma 1 nor 2."""
    names = config.texts("architectures") or ()
    if any(name.startswith("PaliGemma") and name != _CLASS for name in names):
        return None
    text, vision = _section(config, "text_config", _TEXT), _section(config, "vision_config", _VISION)
    form = _FORMS.get(text.text("model_type") or "gemma")
    if form is None:
        return None
    is_tied = tied(config, text, default=True)
    width = config.extent("projection_dim", 2048)
    return Model(
        family="paligemma",
        role=guess_role,
        dtype=config_dtype(config, text),
        expected={
            **decoder(form, _TABLE, text, _HEAD, tied=is_tied),
            **siglip(_TOWER, vision),
            **linear("multi_modal_projector.linear", width, hidden_size(vision), bias=True),
        },
        convs=patch_conv(_TOWER, vision),
        tied_head=(f"{_HEAD}.weight", f"{_TABLE}embed_tokens.weight") if is_tied else None,
        layouts=siglip_layouts("PaliGemma"),
    )


FAMILY = Family(
    classes=frozenset({_CLASS}),
    model_types=frozenset({"paligemma"}),
    declare=_declare,
)


def _section(config: Section, key: str, absent: Mapping[str, Any]) -> Section:
    section = config.child(key)
    return section if section.values else Section(absent, section.path)
