"""timm's MobileNetV5, the image encoder of Gemma 3n: every convolution, every norm.

* A convolution with a norm behind it gets a weight that is scaled down row by row, as far as it must be for float16 to
  hold any result at all; the norm multiplies by the same powers of two in float32, so its result is the same.
* The projections of an attention are scaled as a whole. The powers of two of queries and keys go into the softmax's
  scale, those of the values and of the output into the layer scale behind them.

How large a result can be follows from the weights and from what is known of the input: behind a norm, its gain; further
on, the bounds of all blocks that have added to the residual stream; at the entrance, float16's range. Most convolutions
turn out to need no scaling.

Called as modules, which nothing but a wrapper of PEFT does, the convolutions give float32 results, and what follows
takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn

from gemma_doctor.kernels.guards import encoder_forwards as run
from gemma_doctor.kernels.guards.convolutions import RowScale
from gemma_doctor.kernels.guards.planning import Planner, Site, gain_bound
from gemma_doctor.kernels.guards.replacements import unwrapped
from gemma_doctor.kernels.guards.scaling import ROOM, row_bounds
from gemma_doctor.tensors import FP16_MAX

__all__ = ["PLANNERS"]

_CONV, _PROJECTION, _NORM = "convolution before a norm", "projection of an attention", "norm of maps in float32"
_BLOCK = "block that joins them"

_Bound: TypeAlias = "torch.Tensor | float"
"""The largest magnitude of each channel, or of all."""


def _plan_encoder(site: Site, model: Any) -> None:  # noqa: ANN401  # a class of timm, here and below
    """The blocks in their order, so that each knows what the ones before it can have made."""
    bound = _plan_conv_norm_act(site, model.conv_stem, FP16_MAX, run.stem)
    for stage in model.blocks:
        for block in stage:
            planner = _BLOCKS.get(type(block).__name__)
            bound = FP16_MAX if planner is None else planner(site, block, bound)


def _plan_norm(site: Site, norm: Any) -> None:  # noqa: ANN401
    site.replace(norm, run.rms_norm_2d, _activation(norm), _NORM)


def _activation(norm: Any) -> run.Activation:  # noqa: ANN401
    act, drop = getattr(norm, "act", None), getattr(norm, "drop", None)
    if isinstance(drop, nn.Identity | None) and isinstance(act, nn.Identity | None):
        return run.Activation.NONE
    alone = isinstance(drop, nn.Identity) and _is_tanh_gelu(act)
    return run.Activation.GELU if alone else run.Activation.OTHER


def _is_tanh_gelu(act: Any) -> bool:  # noqa: ANN401
    return type(act).__name__ == "GELUTanh" or (isinstance(act, nn.GELU) and act.approximate == "tanh")


def _plan_conv_norm_act(
    site: Site,
    block: Any,  # noqa: ANN401
    largest: _Bound,
    forward: Callable[[Any, torch.Tensor], torch.Tensor] = run.conv_norm_act,
) -> _Bound:
    """Plans one block; returns the bound on its result. No activation here makes anything larger."""
    if not _has_rms_norm(block.bn):
        return FP16_MAX
    site.replace(block, forward, _pair(site, block.conv, block.bn, largest), _BLOCK)
    return gain_bound(block.bn.weight)


def _plan_inverted_residual(site: Site, block: Any, largest: _Bound) -> _Bound:  # noqa: ANN401
    bound = largest
    for name in ("dw_start", "pw_exp", "dw_mid", "pw_proj", "dw_end"):
        step = getattr(block, name, None)
        if step is not None and hasattr(step, "bn"):
            bound = _plan_conv_norm_act(site, step, bound)
    return _behind(block, bound, largest)


def _plan_edge_residual(site: Site, block: Any, largest: _Bound) -> _Bound:  # noqa: ANN401
    if not (_has_rms_norm(block.bn1) and _has_rms_norm(block.bn2)):
        return FP16_MAX
    expansion = _pair(site, block.conv_exp, block.bn1, largest)
    projection = _pair(site, block.conv_pwl, block.bn2, gain_bound(block.bn1.weight))
    site.replace(block, run.edge_residual, (expansion, projection), _BLOCK)
    return _behind(block, gain_bound(block.bn2.weight), largest)


def _plan_mobile_attention(site: Site, block: Any, largest: _Bound) -> _Bound:  # noqa: ANN401
    attn = block.attn
    if type(attn).__name__ != "MultiQueryAttention2d" or not _has_rms_norm(block.norm):
        return FP16_MAX
    plan = run.Attention({}, {})
    outputs = gain_bound(block.norm.weight)
    for name in ("query", "key", "value"):
        steps, bound = getattr(attn, name), gain_bound(block.norm.weight)
        if hasattr(steps, "down_conv"):
            plan.shrinking[name] = _pair(site, steps.down_conv, steps.norm, bound)
        if hasattr(steps, "norm"):
            bound = gain_bound(steps.norm.weight)
        plan.projections[name], outputs = _single(site, steps.proj, bound, together=True)
    heads = outputs.repeat(attn.num_heads)  # of the values, for attention averages them
    smaller = (heads * 2.0 ** -plan.projections["value"].scale.largest).clamp(max=ROOM)
    plan.projections["output"], _ = _single(site, attn.output.proj, smaller)
    site.replace(block, run.mobile_attention, plan, _BLOCK)
    output: Any = plan.projections["output"].conv
    return _behind(block, row_bounds(output.weight, heads, output.bias), largest)


_BLOCKS = {
    "EdgeResidual": _plan_edge_residual,
    "MobileAttention": _plan_mobile_attention,
    "UniversalInvertedResidual": _plan_inverted_residual,
}


def _behind(block: Any, bound: _Bound, largest: _Bound) -> _Bound:  # noqa: ANN401
    """The bound on a block's result: scaled by its layer scale, and added to its input where it has a shortcut."""
    gamma = getattr(getattr(block, "layer_scale", None), "gamma", None)
    if gamma is not None:
        bound = gamma.detach().double().abs() * bound
    if not isinstance(block.drop_path, nn.Identity):
        return FP16_MAX  # training divides by the share of blocks that are kept
    return bound + largest if block.has_skip else bound


def _pair(site: Site, conv: nn.Module, norm: Any, largest: _Bound) -> run.Pair:  # noqa: ANN401
    plain: Any = unwrapped(conv)
    pair = run.Pair(plain, norm, RowScale(row_bounds(plain.weight, largest, plain.bias), plain.weight))
    site.widen(plain, _CONV, pair.scale.largest)
    _plan_norm(site, norm)
    return pair


def _single(
    site: Site, conv: nn.Module, largest: torch.Tensor, *, together: bool = False
) -> tuple[run.Single, torch.Tensor]:
    """A projection, and the bounds on its results before they are scaled."""
    plain: Any = unwrapped(conv)
    bounds = row_bounds(plain.weight, largest, plain.bias)
    single = run.Single(plain, RowScale(bounds, plain.weight, together=together))
    site.widen(plain, _PROJECTION, single.scale.largest)
    return single, bounds


def _has_rms_norm(norm: nn.Module) -> bool:
    return type(norm).__name__ in {"RmsNorm2d", "RmsNormAct2d"}


def _anywhere(planner: Any) -> Planner:  # noqa: ANN401
    """A planner for a block that stands alone: its input may be anything."""
    return lambda site, block: planner(site, block, FP16_MAX)


PLANNERS: dict[str, Planner] = {
    "timm.layers.conv_bn_act.ConvNormAct": _anywhere(_plan_conv_norm_act),
    "timm.layers.norm.RmsNorm2d": _plan_norm,
    "timm.models.mobilenetv5.MobileNetV5": _plan_encoder,
    "timm.models.mobilenetv5.MobileNetV5Encoder": _plan_encoder,
    **{f"timm.models._efficientnet_blocks.{name}": _anywhere(planner) for name, planner in _BLOCKS.items()},
}
