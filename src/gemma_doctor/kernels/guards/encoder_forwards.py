"""How the guarded parts of timm's MobileNetV5 run (see :mod:`.encoder`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gemma_doctor.kernels.guards.convolutions import Conv, RowScale, convolve
from gemma_doctor.kernels.guards.norms import Form, rms_norm
from gemma_doctor.kernels.guards.planning import result_dtype
from gemma_doctor.kernels.guards.replacements import plan_of

__all__ = ["Attention", "Pair", "Single", "conv_norm_act", "edge_residual", "mobile_attention", "rms_norm_2d"]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A convolution and the norm behind it."""

    conv: Conv
    norm: nn.Module
    scale: RowScale


@dataclass(frozen=True, slots=True, eq=False)
class Single:
    """A projection of an attention."""

    conv: Conv
    scale: RowScale


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """The parts of an attention: convolutions that shrink keys and values, with their norms, and the projections."""

    shrinking: dict[str, Pair]
    projections: dict[str, Single]


def rms_norm_2d(self: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  # a class of timm, here and below
    """Timm's ``RmsNorm2d`` and ``RmsNormAct2d``."""
    return _normalised(self, x, None)


def _normalised(norm: Any, x: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:  # noqa: ANN401
    """The norm of x times factor, and the activation behind it."""
    gelu = plan_of(norm)
    form = Form(norm.eps, 1, result_dtype(x, norm.weight), gelu=gelu)
    y = rms_norm(x, norm.weight, form, factor)
    if gelu or not hasattr(norm, "act"):
        return y
    result: torch.Tensor = norm.act(norm.drop(y))
    return result


def _together(pair: Pair, conv: nn.Module, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A convolution and its norm; one after the other if either has been wrapped since."""
    if conv is not pair.conv or norm is not pair.norm:
        result: torch.Tensor = norm(conv(x))
        return result
    return _normalised(norm, convolve(pair.conv, x, pair.scale), pair.scale.factor(x.device))


def conv_norm_act(self: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """Timm's ``ConvNormAct``."""
    x = _together(plan_of(self), self.conv, self.bn, x)
    return x if self.aa is None else self.aa(x)


def edge_residual(self: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """Timm's ``EdgeResidual``."""
    expansion, projection = plan_of(self)
    y = _together(expansion, self.conv_exp, self.bn1, x)
    y = _together(projection, self.conv_pwl, self.bn2, self.se(self.aa(y)))
    return self.drop_path(y) + x if self.has_skip else y


def mobile_attention(self: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """Timm's ``MobileAttention`` with its ``MultiQueryAttention2d``."""
    if self.conv_cpe_dw is not None:
        x = x + self.conv_cpe_dw(x)
    y, factor = _attended(plan_of(self), self.attn, self.norm(x))
    y = self.layer_scale(y) if factor is None else _layer_scaled(self.layer_scale, y, factor).to(x.dtype)
    return self.drop_path(y) + x if self.has_skip else y


def _layer_scaled(layer_scale: Any, y: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """The product with the layer scale and the factor, in float32."""
    gamma = getattr(layer_scale, "gamma", None)
    gain = factor if gamma is None else factor * gamma.float()
    return y.float() * gain.view(1, -1, 1, 1)


def _attended(plan: Attention, attn: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:  # noqa: ANN401
    """The attention's output, and what each of its channels is to be multiplied by (see timm's attention2d.py)."""
    query, query_exponent = _projected(plan, attn, "query", x)
    key, key_exponent = _projected(plan, attn, "key", x)
    value, value_exponent = _projected(plan, attn, "value", x)
    wide = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    mixed: torch.Tensor = functional.scaled_dot_product_attention(
        attn._reshape_projected_query(query.to(wide), attn.num_heads, attn.key_dim),  # noqa: SLF001
        attn._reshape_input(key.to(wide)),  # noqa: SLF001
        attn._reshape_input(value.to(wide)),  # noqa: SLF001
        dropout_p=attn.attn_drop.p if attn.training else 0.0,
        scale=attn.scale * 2.0 ** (query_exponent + key_exponent),
    )
    height, width = (side // stride for side, stride in zip(x.shape[-2:], attn.query_strides, strict=True))
    mixed = attn._reshape_output(mixed.to(x.dtype), attn.num_heads, height, width)  # noqa: SLF001
    single = plan.projections["output"]
    wrapped = attn.output.proj is not single.conv
    for name, step in attn.output.named_children():
        mixed = convolve(single.conv, mixed, single.scale) if name == "proj" and not wrapped else step(mixed)
    factor = None if wrapped else single.scale.factor(x.device)
    if factor is None and (value_exponent or mixed.dtype != x.dtype):
        factor = torch.ones(mixed.shape[1], device=x.device)
    return mixed, factor if factor is None else factor * 2.0**value_exponent


def _projected(plan: Attention, attn: Any, name: str, x: torch.Tensor) -> tuple[torch.Tensor, int]:  # noqa: ANN401
    """Queries, keys or values, and the k of the factor 2**-k that they are scaled by."""
    steps, single = getattr(attn, name), plan.projections[name]
    if name in plan.shrinking:
        x = _together(plan.shrinking[name], steps.down_conv, steps.norm, x)
    else:
        for _, step in list(steps.named_children())[:-1]:
            x = step(x)
    if steps.proj is not single.conv:
        return steps.proj(x), 0
    return convolve(single.conv, x, single.scale), single.scale.largest
