"""What the guards of both text models share: norms, embeddings, and linear layers in float16 with casts by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from gemma_doctor.kernels.guards.norms import Form, rms_norm
from gemma_doctor.kernels.guards.planning import Site
from gemma_doctor.kernels.guards.products import exact_product, largest_row
from gemma_doctor.kernels.guards.replacements import plan_of, unwrapped

__all__ = ["Out", "cast_linear", "dtype_of", "exact_linear", "in_model_dtype", "norm", "wide_embedding"]

_NORM = "norm in float32"

Out: TypeAlias = "torch.dtype | nn.Module"
"""A dtype, or the module whose weight says which one: a model may be cast after it was guarded."""


def dtype_of(out: Out) -> torch.dtype:
    """What it is now."""
    if isinstance(out, torch.dtype):
        return out
    weight: Any = out.weight
    found: torch.dtype = weight.dtype
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Norm:
    """How a norm of transformers computes.

    Attributes:
        offset: Added to the weight.
        out: The result's; None for the one of its input, or of its weight where its input is wider.
    """

    offset: float
    out: Out | None


def norm(site: Site, module: Any, *, offset: float = 0.0, out: Out | None = None) -> None:  # noqa: ANN401
    """Guards an RMS norm over the last axis."""
    site.replace(module, _norm_forward, _Norm(offset, out), _NORM)


def _norm_forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  # of transformers
    plan, weight = plan_of(self), getattr(self, "weight", None)
    if plan.out is not None:
        out = dtype_of(plan.out)
    else:
        out = weight.dtype if weight is not None and hidden_states.dtype == torch.float32 else hidden_states.dtype
    return rms_norm(hidden_states, weight, Form(self.eps, -1, out, offset=plan.offset))


def wide_embedding(site: Site, module: Any, out: torch.dtype) -> None:  # noqa: ANN401  # of transformers
    """Guards a scaled embedding: its product with sqrt(hidden_size) in float32, its result in some wider dtype."""
    site.replace(unwrapped(module), _embedding_forward, out, f"embedding that gives {str(out).removeprefix('torch.')}")


def _embedding_forward(self: Any, input_ids: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  # of transformers
    rows = functional.embedding(input_ids, self.weight, self.padding_idx)
    return (rows.float() * self.scalar_embed_scale).to(plan_of(self))


def cast_linear(site: Site, module: nn.Module) -> None:
    """Guards a linear layer whose results fit: its input is cast to the dtype of its weights."""
    linear = unwrapped(module)
    if type(linear) is nn.Linear:  # quantised layers cast by themselves
        site.replace(linear, _cast_forward, linear, "matrix product with a cast input")


def _cast_forward(self: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  # a linear layer
    return functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


def exact_linear(site: Site, module: nn.Module) -> None:
    """Guards a linear layer whose results may not fit: they are scaled for each position, and come as float32."""
    linear = unwrapped(module)
    if type(linear) is nn.Linear:
        site.replace(linear, _exact_forward, largest_row(linear), "matrix product scaled by position, float32 result")


def _exact_forward(self: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  # a linear layer
    return exact_product(self, x, plan_of(self))


def in_model_dtype(site: Site, rotary: Any, out: Out) -> None:  # noqa: ANN401  # of transformers
    """Keeps the cosines and sines of a position in the dtype of queries and keys, whatever the residual stream has."""
    site.replace(rotary, _rotary_forward, out, "rotary embedding that gives the model's dtype")


def _rotary_forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401
    cos, sin = type(self).forward(self, x, *args, **kwargs)
    dtype = dtype_of(plan_of(self))
    return cos.to(dtype), sin.to(dtype)
