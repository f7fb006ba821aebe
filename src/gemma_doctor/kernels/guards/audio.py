"""The audio tower of Gemma 3n: its 14 convolutions are small, so they run in float32 up to the norm behind them."""

from __future__ import annotations

from typing import Any

import torch

from gemma_doctor.kernels.guards.planning import Planner, Site
from gemma_doctor.kernels.guards.replacements import plan_of, unwrapped

__all__ = ["PLANNERS"]

_CONV = "convolution in float32 (audio)"


def _group_norm_forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  # of transformers
    """Computes in float32 as it is; only its result goes back to the dtype of the model."""
    result: torch.Tensor = type(self).forward(self, hidden_states)
    return result.to(plan_of(self).weight.dtype)


def _plan_subsampling(site: Site, block: Any) -> None:  # noqa: ANN401
    site.widen(unwrapped(block.conv), _CONV)
    site.replace(block.norm, _group_norm_forward, block.norm, "group norm that takes a float32 input")


def _plan_light_convolution(site: Site, block: Any) -> None:  # noqa: ANN401
    site.widen(unwrapped(block.depthwise_conv1d), _CONV)


_HOME = "transformers.models.gemma3n.modeling_gemma3n."
PLANNERS: dict[str, Planner] = {
    f"{_HOME}Gemma3nAudioConformerLightConv1d": _plan_light_convolution,
    f"{_HOME}Gemma3nAudioSSCPConvBlock": _plan_subsampling,
}
