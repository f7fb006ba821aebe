"""One step of a model, as training takes it: forward, loss, backward."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gemma_doctor.tensors import TensorStats
from gemma_doctor.verify.figures import Figures
from gemma_doctor.verify.offloaded import tensors_of
from gemma_doctor.verify.streaming import streamed

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
    extra = {"use_cache": False} if "input_ids" in arguments else {}
    offloaded = streamed(model) if torch.is_grad_enabled() else None
    casting = torch.autocast(device.type, torch.float16) if amp else nullcontext()
    with casting, offloaded.running() if offloaded else nullcontext():
        output: Any = model(**arguments, **extra)
    first = output.logits if getattr(output, "logits", None) is not None else output[0]
    loss = getattr(output, "loss", None)
    return Step(first.detach(), (first.float().square().mean() if loss is None else loss).float())


def gradients(model: nn.Module, loss: Tensor, scale: float) -> dict[str, TensorStats]:
    """The figures of every parameter's gradient at one loss scale; the graph is kept for the next one.

    Each gradient is let go once it is measured, so all of them are never in memory together.

    Args:
        model: The model.
        loss: The loss, with its graph.
        scale: What it is multiplied by.
    """
    figures, offloaded = Figures(), streamed(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def gather(parameter: Tensor) -> None:
        if parameter.grad is None:  # what used it has no gradient for it
            return
        figures.add(names[id(parameter)], parameter.grad)
        parameter.grad = None

    here = [parameter for parameter in model.parameters() if parameter.requires_grad and not parameter.is_meta]
    handles = [parameter.register_post_accumulate_grad_hook(gather) for parameter in here]
    try:
        with offloaded.giving(figures.add) if offloaded else nullcontext():
            (loss * scale).backward(retain_graph=True)
    finally:
        for handle in handles:
            handle.remove()
    stats = figures.stats()
    return {name: stats[name] for name in names.values() if name in stats}


def parameter_stats(model: nn.Module) -> dict[str, TensorStats]:
    """The figures of every floating-point parameter and persistent buffer, as it was cast; offloaded ones too."""
    kept, figures = set(model.state_dict(keep_vars=True)), Figures()
    for name, tensor in tensors_of(model):
        if name in kept and tensor.is_floating_point() and tensor.numel():
            figures.add(name, tensor)
    return figures.stats()
