"""Gemma 3's text model, whose residual stream leaves float16's range.

The recipe has three parts: the residual stream stays in float32 (or bfloat16), matrix products run in float16 between
casts, and everything else, the norms above all, is computed in float32.

* Norms that feed matrix products give float16: their results are bounded by their gains.
* Products whose inputs such a norm bounds, and whose results are proved to fit, run as they are. All others are scaled
  for each position (:mod:`.products`): those that write into the residual stream, and whatever has no such proof.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from gemma_doctor.kernels.guards import text
from gemma_doctor.kernels.guards.planning import Planner, Site, gain_bound
from gemma_doctor.kernels.guards.replacements import unwrapped
from gemma_doctor.kernels.guards.scaling import ROOM

__all__ = ["PLANNERS"]


def _plan_model(site: Site, model: Any) -> None:  # noqa: ANN401  # of transformers, here and below
    text.wide_embedding(site, model.embed_tokens, site.residual)
    text.in_model_dtype(site, model.rotary_emb, model.embed_tokens)
    _plan_reading_norm(site, model.norm)


def _plan_layer(site: Site, layer: Any) -> None:  # noqa: ANN401
    attention, mlp = layer.self_attn, layer.mlp
    values = _plan_reader(site, attention.v_proj, layer.input_layernorm)
    for norm, readers in (
        (layer.input_layernorm, (attention.q_proj, attention.k_proj)),
        (layer.pre_feedforward_layernorm, (mlp.gate_proj, mlp.up_proj)),
    ):
        _plan_reading_norm(site, norm)
        for reader in readers:
            _plan_reader(site, reader, norm)
    for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
        text.norm(site, norm, offset=1.0, out=site.residual)
    for norm in (attention.q_norm, attention.k_norm):
        text.norm(site, norm, offset=1.0, out=values)  # an attention takes one dtype
    for writer in (attention.o_proj, mlp.down_proj):
        text.exact_linear(site, writer)
    site.replace(mlp, _mlp_forward, mlp, "gated product in float32")


def _plan_reading_norm(site: Site, norm: Any) -> None:  # noqa: ANN401
    """A norm that reads the residual stream for matrix products."""
    text.norm(site, norm, offset=1.0, out=norm if _fits(norm) else torch.float32)


def _fits(norm: Any) -> bool:  # noqa: ANN401
    """Whether float16 holds all that a norm may give."""
    return float(gain_bound(norm.weight, 1.0).max()) < ROOM


def _plan_reader(site: Site, module: nn.Module, norm: Any) -> text.Out:  # noqa: ANN401
    """A matrix product behind a norm: |output| <= sqrt(channels) * ||row * gain||_2 (Cauchy and Schwarz).

    Returns:
        What says the dtype of its results.
    """
    linear: Any = unwrapped(module)
    if type(linear) is not nn.Linear:
        return norm  # a quantised one gives the dtype that it is given
    rows = (linear.weight.detach().float() * (norm.weight.detach().float() + 1.0)).norm(dim=1)
    fits = _fits(norm) and math.sqrt(linear.in_features) * float(rows.max()) < ROOM
    (text.cast_linear if fits else text.exact_linear)(site, linear)
    return linear if fits else torch.float32


def _mlp_forward(self: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    gated: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x).float()) * self.up_proj(x))
    return gated


def _plan_head(site: Site, model: Any) -> None:  # noqa: ANN401
    _plan_reader(site, model.lm_head, model.base_model.get_decoder().norm)


_HOME = "transformers.models.gemma3.modeling_gemma3."
PLANNERS: dict[str, Planner] = {
    f"{_HOME}Gemma3DecoderLayer": _plan_layer,
    f"{_HOME}Gemma3ForCausalLM": _plan_head,
    f"{_HOME}Gemma3ForConditionalGeneration": _plan_head,
    f"{_HOME}Gemma3TextModel": _plan_model,
}
