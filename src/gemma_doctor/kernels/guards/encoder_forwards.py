"""How the guarded parts of timm's MobileNetV5 run (see :mod:`.encoder`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from threading import Lock
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from gemma_doctor.kernels.guards.convolutions import Conv, RowScale, convolve
from gemma_doctor.kernels.guards.norms import Form, rms_norm
from gemma_doctor.kernels.guards.planning import result_dtype
from gemma_doctor.kernels.guards.replacements import plan_of

__all__ = [
    "Activation",
    "Attention",
    "Pair",
    "Single",
    "conv_norm_act",
    "edge_residual",
    "mobile_attention",
    "rms_norm_2d",
    "stem",
]


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


class Activation(Enum):
    """What follows a norm, when it was guarded."""

    NONE = "none"
    GELU = "GELU by tanh, which the norm computes"
    OTHER = "another, or dropout before it"


_ATTENTIONS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""All but cuDNN's, which takes the host longer to start than the GPU to finish."""

Projections: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values: maps of (batch, channels, height, width)."""


def rms_norm_2d(self: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  # a class of timm, here and below
    """Timm's ``RmsNorm2d`` and ``RmsNormAct2d``."""
    return _normalised(self, x, None)


def _normalised(norm: Any, x: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:  # noqa: ANN401
    """The norm of x times factor, and the activation behind it."""
    activation: Activation = plan_of(norm)
    weight = norm.weight
    form = Form(norm.eps, 1, result_dtype(x, weight), gelu=activation is Activation.GELU)
    y = rms_norm(x, weight, form, factor)
    if activation is not Activation.OTHER:
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


def stem(self: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """The first ``ConvNormAct``: from there on 16-bit maps lie channels last, as GPUs multiply and norms read them."""
    if x.dtype.itemsize == 2:  # noqa: PLR2004  # bytes
        x = x.contiguous(memory_format=torch.channels_last)
    return conv_norm_act(self, x)


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
    return y * gain.view(1, -1, 1, 1)  # torch multiplies float16 and float32 as float32


def _attended(plan: Attention, attn: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:  # noqa: ANN401
    """The attention's output, and what each of its channels is to be multiplied by (see timm's attention2d.py)."""
    query, query_exponent = _projected(plan, attn, "query", x)
    key, key_exponent = _projected(plan, attn, "key", x)
    value, value_exponent = _projected(plan, attn, "value", x)
    mixed = _mixed(attn, x, (query, key, value), attn.scale * 2.0 ** (query_exponent + key_exponent))
    single = plan.projections["output"]
    wrapped = attn.output.proj is not single.conv
    for name, step in attn.output.named_children():
        mixed = convolve(single.conv, mixed, single.scale) if name == "proj" and not wrapped else step(mixed)
    factor = None if wrapped else single.scale.factor(x.device)
    if factor is None and (value_exponent or mixed.dtype != x.dtype):
        factor = torch.ones(mixed.shape[1], device=x.device)
    return mixed, factor if factor is None else factor * 2.0**value_exponent


def _mixed(attn: Any, x: torch.Tensor, projections: Projections, scale: float) -> torch.Tensor:  # noqa: ANN401
    """The values, averaged by the softmax of scaled products of queries and keys: a map of x's dtype."""
    height, width = (side // stride for side, stride in zip(x.shape[-2:], attn.query_strides, strict=True))
    query, key, value = projections
    dropout = attn.attn_drop.p if attn.training else 0.0
    if query.dtype == key.dtype == value.dtype and query.dtype.itemsize == 2:  # noqa: PLR2004  # bytes
        mixed = _mixed_by_heads(attn.num_heads, projections, scale, dropout)
        return mixed.unflatten(2, (height, width)).to(x.dtype)
    wide = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    mixed = functional.scaled_dot_product_attention(
        attn._reshape_projected_query(query.to(wide), attn.num_heads, attn.key_dim),  # noqa: SLF001
        attn._reshape_input(key.to(wide)),  # noqa: SLF001
        attn._reshape_input(value.to(wide)),  # noqa: SLF001
        dropout_p=dropout,
        scale=scale,
    )
    result: torch.Tensor = attn._reshape_output(mixed.to(x.dtype), attn.num_heads, height, width)  # noqa: SLF001
    return result


def _mixed_by_heads(heads: int, projections: Projections, scale: float, dropout: float) -> torch.Tensor:
    """The same as (batch, channels, positions) of maps that lie channels last.

    The one key and value that all heads share are given to each of them, without a copy: torch's fused attentions take
    as many as there are queries, and with fewer it computes every product and softmax in float32, in ten passes.
    """
    rows = [map_.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1) for map_ in projections]
    query, key, value = (row.flatten(1, 2) for row in rows)
    keys, values = (_for_each(heads, one) for one in (key, value))
    split = query.unflatten(2, (heads, -1)).transpose(1, 2)
    with sdpa_kernel(_ATTENTIONS) if torch.compiler.is_compiling() else _without_cudnn:
        mixed = functional.scaled_dot_product_attention(split, keys, values, dropout_p=dropout, scale=scale)
    return mixed.transpose(1, 2).flatten(2).transpose(1, 2)


def _for_each(heads: int, rows: torch.Tensor) -> torch.Tensor:
    """Keys or values as (batch, heads, positions, width), the same for each head.

    Compiled for training they are copies: of views that repeat, torch's compiler expects gradients in another layout
    than flash attention gives them (torch 2.11 to 2.13, ``meta__scaled_dot_product_flash_backward``).
    """
    repeated = rows.unsqueeze(2).expand(-1, -1, heads, -1)
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        repeated = repeated.contiguous()
    return repeated.transpose(1, 2)


class _WithoutCudnn:
    """What ``sdpa_kernel(_ATTENTIONS)`` does, where that would take the host longer than all the rest.

    The setting is the process's. Of threads that run at the same time the first switches cuDNN's attention off, and the
    last puts it back as it was.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.backends.cuda.cudnn_sdp_enabled()
                torch.backends.cuda.enable_cudnn_sdp(enabled=False)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch.backends.cuda.enable_cudnn_sdp(self._before)


_without_cudnn = _WithoutCudnn()


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
