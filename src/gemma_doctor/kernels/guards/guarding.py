"""``guard`` and ``unguard``: a loaded model computes safely in float16, and its weights stay what they are."""

from __future__ import annotations

import torch
from torch import nn

from gemma_doctor.errors import UsageError
from gemma_doctor.kernels.guards import audio, encoder, gemma3, gemma3n
from gemma_doctor.kernels.guards.planning import Planner, Site
from gemma_doctor.kernels.guards.replacements import Guard, restore

__all__ = ["guard", "knows", "unguard"]

_PLANNERS: dict[str, Planner] = {
    **encoder.PLANNERS,
    **audio.PLANNERS,
    **gemma3.PLANNERS,
    **gemma3n.PLANNERS,
}


def guard(model: nn.Module, residual: torch.dtype = torch.float32) -> Guard:
    """Makes a loaded Gemma 3 or Gemma 3n safe in float16, forward and backward.

    Replaces the ``forward`` of single modules; parameters, buffers, names and ``state_dict()`` stay as they are.
    Exponents are chosen from the weights as they are now: call it again after loading other weights.

    Args:
        model: The model, or a part of one such as its image encoder, on any device.
        residual: Dtype of Gemma 3's residual stream: float32, or bfloat16 where memory matters more.

    Returns:
        What was replaced.

    Raises:
        UsageError: There is nothing in the model that can be guarded, some of its weights have no values yet, something
            else has replaced a module's ``forward`` already, or the residual stream would not be wider. The model is
            left as it was.
    """
    _check(model, residual)
    unguard(model)
    site = Site(model, residual)
    try:
        with torch.inference_mode(mode=False):  # what is made now may be needed in training
            for module in list(model.modules()):
                planner = _planner(module)
                if planner is not None:
                    planner(site, module)
    except BaseException:
        unguard(model)
        raise
    if not site.guard.replaced:
        raise UsageError(
            f"{type(model).__name__}: nothing in it can be guarded. What can is Gemma 3's text model, Gemma 3n, and "
            "its image encoder (timm's MobileNetV5). Mend any other model's checkpoint (gemma-doctor repair), or run "
            "the model in bfloat16 or float32"
        )
    return site.guard


def knows(model: nn.Module) -> bool:
    """Whether :func:`guard` knows the class of any module.

    Args:
        model: The model; its weights, which say nothing of that, may be on device meta.
    """
    return any(_planner(module) is not None for module in model.modules())


def _check(model: nn.Module, residual: torch.dtype) -> None:
    if residual not in {torch.float32, torch.bfloat16}:
        raise UsageError(f"residual={residual}: the stream may leave its range; pass torch.float32 or torch.bfloat16")
    empty = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
    if empty is not None:
        raise UsageError(
            f"{empty} has no values here (device meta), and they say what must be scaled: load all weights first, "
            "without a device_map that keeps some of them elsewhere"
        )


def unguard(model: nn.Module) -> None:
    """Takes back what :func:`guard` did, whatever has happened to the model since."""
    for module in model.modules():
        restore(module)


def _planner(module: nn.Module) -> Planner | None:
    """The planner of the module's class, or of the nearest class that it inherits from."""
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
    return next((_PLANNERS[name] for name in names if name in _PLANNERS), None)
