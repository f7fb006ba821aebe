"""Weights that accelerate keeps elsewhere: the model has empty ones in their place until a layer runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["tensors_of"]


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer by its name, as the layer that owns it will get it; an offloaded one on the host.

    Args:
        model: A model, wholly on a device or spread by accelerate. Offloaded tensors are read one by one.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_meta:
            yield name, tensor.detach()
        elif (kept := _kept(model, name)) is not None:
            yield name, kept


def _kept(model: nn.Module, name: str) -> Tensor | None:
    """What accelerate's hook on the owner would fill in; None where it has nothing of that name."""
    owner, _, short = name.rpartition(".")
    hook: Any = getattr(model.get_submodule(owner), "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        weights = getattr(one, "weights_map", None)
        if weights is not None:
            found: Tensor = weights[short]
            return found
    return None
