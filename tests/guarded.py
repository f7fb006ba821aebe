"""What the tests of the guards share: models of planted checkpoints, and how far their answers lie from float32's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from checkpoints import Array, write
from tiny_models import load
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


def built(tensors: Mapping[str, Array], config: Mapping[str, Any]) -> Any:  # noqa: ANN401  # a class of transformers
    """A model with these weights, in float32."""
    with TemporaryDirectory() as folder:
        return load(write(Path(folder) / "model", tensors, dict(config)), torch.float32).model


def planted(model: Any, factors: Mapping[str, float], rows: int | None = None) -> Any:  # noqa: ANN401
    """A copy of a model with the first rows (None for all) of some parameters multiplied."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, factor in factors.items():
            copied.get_parameter(name)[:rows] *= factor
    return copied


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The Euclidean distance, as a share of the second one's length; NaN where something is not finite."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


class Infinities(TorchDispatchMode):  # type: ignore[misc]  # torch counts as untyped
    """Counts operations, forward and backward, that give infinities or NaN while it lasts.

    Those of scalars are limits, such as a clipping of 1e10 in float16, and no results.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            watched = isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dim()
            if watched and "empty" not in str(func) and not bool(tensor.isfinite().all()):
                self.seen.append(str(func))
        return result


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    """Those that the last backward pass left."""
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
