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

_PICTURED = 4
"""Dimensions of the logits of a segmentation: batch, classes, height, width (transformers' SemanticSegmenterOutput)."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a forward pass returned.

    Attributes:
        logits: The logits, or whatever the model returns first; shape (..., classes).
        loss: The loss, float32, with its graph.
        name: What transformers calls the first of them: ``"logits"``, or ``"last_hidden_state"``, say.
    """

    logits: Tensor
    loss: Tensor
    name: str = "logits"

    @property
    def trains(self) -> bool:
        """Whether there is a backward pass: whether any parameter that is trained has a part in the loss."""
        return bool(self.loss.requires_grad)


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
    named: Mapping[str, Any] = output if isinstance(output, Mapping) else {"first output": output[0]}
    name = _compared(named)
    first: Tensor = named[name]
    loss = (first.float().square().mean() if named.get("loss") is None else named["loss"]).float()
    return Step(_by_class(first.detach(), name), loss, name)


def _compared(output: Mapping[str, Any]) -> str:
    """The name of the logits, or of whatever the model returns first."""
    return "logits" if output.get("logits") is not None else next(name for name in output if name != "loss")


def _by_class(first: Tensor, name: str) -> Tensor:
    """The classes last, which a segmentation has before height and width."""
    pictured = name == "logits" and first.ndim == _PICTURED
    return first.movedim(1, -1) if pictured else first


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
