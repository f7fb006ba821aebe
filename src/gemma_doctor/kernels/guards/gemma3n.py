"""Gemma 3n's text model: what it squares or multiplies by sqrt(hidden_size), in float32.

AltUp squares the embeddings before the first layer, and the streams after the last one, to match their magnitudes. So
embeddings come in float32, the projections of AltUp give float32, and the layers between run in the model's dtype.
Soft tokens are multiplied by sqrt(hidden_size) before the norm that makes up for it, so the encoder's result is handed
over in float32.
"""

from __future__ import annotations

from typing import Any

import torch

from gemma_doctor.kernels.guards import text
from gemma_doctor.kernels.guards.planning import Planner, Site
from gemma_doctor.kernels.guards.replacements import plan_of

__all__ = ["PLANNERS"]


def _plan_text_model(site: Site, model: Any) -> None:  # noqa: ANN401  # of transformers, here and below
    text.wide_embedding(site, model.embed_tokens, torch.float32)
    text.in_model_dtype(site, model.rotary_emb, model.embed_tokens)
    text.cast_linear(site, model.per_layer_model_projection)
    for projection in (*model.altup_projections, *model.altup_unembed_projections):
        text.exact_linear(site, projection)
    first, last = model.layers[0], model.layers[-1]
    for layer in (first, last):  # the same, where there is one
        plan = (model.embed_tokens if layer is first else None, torch.float32 if layer is last else None)
        site.replace(layer, _layer_forward, plan, "layer between float32 and the model's dtype")


def _layer_forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
    before, after = plan_of(self)
    x = hidden_states if before is None else hidden_states.to(text.dtype_of(before))
    result: torch.Tensor = type(self).forward(self, x, *args, **kwargs)
    return result.to(after or result.dtype)


def _plan_multimodal_model(site: Site, model: Any) -> None:  # noqa: ANN401
    site.replace(model.vision_tower, _vision_forward, model, "image encoder that gives float32 soft tokens")


def _vision_forward(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    outputs = type(self).forward(self, *args, **kwargs)
    outputs.last_hidden_state = outputs.last_hidden_state.float()
    return outputs


def _plan_norm(site: Site, norm: Any) -> None:  # noqa: ANN401
    text.norm(site, norm)


_HOME = "transformers.models.gemma3n.modeling_gemma3n."
PLANNERS: dict[str, Planner] = {
    f"{_HOME}Gemma3nModel": _plan_multimodal_model,
    f"{_HOME}Gemma3nRMSNorm": _plan_norm,
    f"{_HOME}Gemma3nTextModel": _plan_text_model,
}
