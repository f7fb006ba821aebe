"""The small pieces that every family is put together from: one module, its tensors."""

from __future__ import annotations

from gemma_doctor.architectures.base import Expected, Need

__all__ = ["Tensors", "embedding", "gated", "layer_norm", "linear", "rms_norm", "tied_head"]

Tensors = dict[str, Expected]
"""Expected tensors by name, in model order."""


def linear(module: str, outputs: int, inputs: int, *, bias: bool = False, need: Need = "required") -> Tensors:
    """A ``torch.nn.Linear``: ``weight`` of shape (outputs, inputs) and perhaps a ``bias``."""
    tensors = {f"{module}.weight": Expected((outputs, inputs), "linear", "Linear", need)}
    if bias:
        tensors[f"{module}.bias"] = Expected((outputs,), "bias", "Linear", need)
    return tensors


def rms_norm(module: str, channels: int, kind: str, need: Need = "required", *, plus_one: bool = False) -> Tensors:
    """An RMS norm of class ``kind``: one gain per channel, or what is added to one."""
    return {f"{module}.weight": Expected((channels,), "norm", kind, need, plus_one=plus_one)}


def layer_norm(module: str, channels: int) -> Tensors:
    """A ``torch.nn.LayerNorm``: gain and bias."""
    return {
        f"{module}.weight": Expected((channels,), "norm", "LayerNorm"),
        f"{module}.bias": Expected((channels,), "bias", "LayerNorm"),
    }


def embedding(module: str, rows: int, channels: int, kind: str = "Embedding", need: Need = "required") -> Tensors:
    """An embedding table of class ``kind``."""
    return {f"{module}.weight": Expected((rows, channels), "embedding", kind, need)}


def gated(prefix: str, inner: int, width: int, *, bias: bool = False) -> Tensors:
    """A gated feed-forward: ``down_proj(activation(gate_proj(x)) * up_proj(x))``."""
    tensors: Tensors = {}
    for name, outputs, inputs in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
        tensors |= linear(f"{prefix}{name}_proj", outputs, inputs, bias=bias)
    return tensors


def tied_head(module: str, rows: int, channels: int, *, tied: bool) -> Tensors:
    """The output head: absent from disk, as a rule, where it is tied to the embedding."""
    return linear(module, rows, channels, need="tied-head" if tied else "required")
