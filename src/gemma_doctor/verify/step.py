"""One step of a model, as training takes it: forward, loss, backward."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from gemma_doctor.errors import UsageError
from gemma_doctor.kernels.outputs import launch
from gemma_doctor.tensors import TensorStats
from gemma_doctor.verify.offloaded import tensors_of

__all__ = ["Step", "forward", "gradients", "parameter_stats"]


@dataclass(frozen=True, slots=True)
class Step:
    """What a forward pass returned.

    Attributes:
        logits: The logits, or whatever the model returns first; shape (..., classes).
        loss: The loss, float32, with its graph.
    """

    logits: Tensor
    loss: Tensor


def forward(model: nn.Module, arguments: Mapping[str, Tensor], device: torch.device, *, amp: bool) -> Step:
    """Run a model forward.

    Args:
        model: The model.
        arguments: Its keyword arguments, on the device.
        device: Where it runs.
        amp: Whether it runs under ``torch.autocast`` in float16.

    Returns:
        Its logits, and the loss that it computes itself where it is given labels; else the mean of the squares of its
        output, which has gradients for every parameter that the output depends on.
    """
    extra = {"use_cache": False} if "labels" in arguments else {}
    with torch.autocast(device.type, torch.float16) if amp else nullcontext():
        output: Any = model(**arguments, **extra)
    first = output.logits if getattr(output, "logits", None) is not None else output[0]
    loss = getattr(output, "loss", None)
    return Step(first.detach(), (first.float().square().mean() if loss is None else loss).float())


def gradients(model: nn.Module, loss: Tensor, scale: float) -> dict[str, TensorStats]:
    """The figures of every parameter's gradient at one loss scale; the graph is kept for the next one.

    Args:
        model: The model; its gradients are cleared again.
        loss: The loss, with its graph.
        scale: What it is multiplied by.

    Raises:
        UsageError: If parts of the model are offloaded: their gradients would be missing in silence.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError("the model does not fit the device, so that gradients cannot be measured: use --no-backward")
    (loss * scale).backward(retain_graph=True)
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    with _disable_current_modes():  # a trace must not see how gradients are measured
        stats = launch(list(found.values())).stats() if found else []
    model.zero_grad(set_to_none=True)
    return dict(zip(found, stats, strict=True))


def parameter_stats(model: nn.Module) -> dict[str, TensorStats]:
    """The figures of every floating-point parameter and persistent buffer, as it was cast; offloaded ones too."""
    kept = set(model.state_dict(keep_vars=True))
    launched = {
        name: launch([tensor])
        for name, tensor in tensors_of(model)
        if name in kept and tensor.is_floating_point() and tensor.numel()
    }
    return {name: one.stats()[0] for name, one in launched.items()}
