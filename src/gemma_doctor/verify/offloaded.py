"""Weights that accelerate keeps elsewhere: the model has empty ones in their place until a layer runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["tensors_of", "weights_of"]


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


def weights_of(hook: Any) -> Any:  # noqa: ANN401  # a class of accelerate
    """What accelerate's hook on a module fills its tensors from, by their names there; None where it fills nothing."""
    hooks = getattr(hook, "hooks", (hook,))
    return next((kept for one in hooks if (kept := getattr(one, "weights_map", None)) is not None), None)


def _kept(model: nn.Module, name: str) -> Tensor | None:
    """What accelerate's hook on the owner would fill in; None where it has nothing of that name."""
    owner, _, short = name.rpartition(".")
    weights = weights_of(getattr(model.get_submodule(owner), "_hf_hook", None))
    if weights is None:
        return None
    found: Tensor = weights[short]
    return found
