"""Models ready to run: one at a time, each given its memory back before the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from gemma_doctor.checkpoint.quoting import listed
from gemma_doctor.errors import UsageError
from gemma_doctor.verify import machine, native
from gemma_doctor.verify.inputs import Batch
from gemma_doctor.verify.loading import Subject
from gemma_doctor.verify.measures import Measures, untold
from gemma_doctor.verify.native import NativeTrace
from gemma_doctor.verify.needs import first_line
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.step import Step, forward
from gemma_doctor.verify.streaming import stream
from gemma_doctor.verify.tracing import Trace

__all__ = ["Bench"]


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how models run.

    Attributes:
        measures: How.
        device: Where.
        numel: Parameters of the model, to know whether it fits.
        step: Told what is done next, in words.
    """

    measures: Measures
    device: torch.device
    numel: int
    step: Callable[[str], None] = untold

    @contextmanager
    def model(self, subject: Subject, dtype: torch.dtype) -> Iterator[Any]:
        """A model of the subject.

        Args:
            subject: The checkpoint.
            dtype: What its parameters are cast to.
        """
        self.step(f"loading the weights as {str(dtype).removeprefix('torch.')}")
        with subject.loaded(dtype, self.device, self.spread(dtype)) as model:
            _freeze(model, self.measures)
            stream(model, self.device)
            if self.measures.checkpointing:
                _recompute(model)
            yield model

    def spread(self, dtype: torch.dtype) -> dict[Any, Any] | None:
        """Bytes for accelerate to fill, where the model does not fit into the device's memory; None where it does.

        Args:
            dtype: What its parameters are cast to.
        """
        limit, backward = self.measures.memory_limit, self.measures.backward
        return machine.room(self.numel * dtype.itemsize, self.device, limit, backward=backward)

    def prepare(self) -> None:
        """Have what traces on a GPU need compiled beside the runs that come before them."""
        if self.device.type == "cuda":
            native.building()

    def trace(self, places: Places) -> Trace | NativeTrace:
        """A trace of a model that runs here."""
        waiting = machine.waiting(self.device)
        below = self.device.type == "cuda" and places.ordinary and places.offloaded is None
        module = native.building().result() if below else None
        return NativeTrace(module, places, waiting) if module else Trace(places, waiting)

    def run(self, model: nn.Module, inputs: Batch, dtype: torch.dtype, *, amp: bool = False) -> Step:
        """One forward pass, after what the run before has left has been given back, which takes a while on a GPU.

        Args, returned value and errors are those of :meth:`forward`.
        """
        machine.give_back(self.device)
        return self.forward(model, inputs, dtype, amp=amp)

    def forward(self, model: nn.Module, inputs: Batch, dtype: torch.dtype, *, amp: bool = False) -> Step:
        """One forward pass.

        Args:
            model: The model.
            inputs: What it is given.
            dtype: What floating-point inputs are cast to.
            amp: Whether it runs under autocast.

        Raises:
            UsageError: If the model does not take such inputs.
        """
        try:
            return forward(model, inputs.on(self.device, dtype), self.device, amp=amp)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
            why = f"{first_line(error)}{''.join(_hints(model, inputs))}"
            raise UsageError(f"{type(model).__name__} cannot be run with {inputs.words}: {why}") from error


def _hints(model: Any, inputs: Batch) -> Iterator[str]:  # noqa: ANN401  # a class of transformers
    """What is said of inputs beyond what a model was made for, by its config."""
    config = getattr(model, "config", None)
    if config is None:
        return
    ids, pixels = inputs.arguments.get("input_ids"), inputs.arguments.get("pixel_values")
    text, vision = config.get_text_config(), getattr(config, "vision_config", config)
    known, side = getattr(text, "max_position_embeddings", None), getattr(vision, "image_size", None)
    if ids is not None and known and ids.shape[1] > known:  # a table of positions ends there
        yield f". These are {ids.shape[1]:,} tokens, and its config names {known:,} positions: shorten with --seq-len"
    if ids is not None and len(ids) > 1 and getattr(text, "pad_token_id", None) is None:
        yield ". Its config names no pad_token_id: give it the tokenizer's, or leave out --batch"
    if pixels is not None and isinstance(side, int) and pixels.shape[-1] != side:
        yield f". Its config names pictures of {side} px: leave out --image-size"


def _freeze(model: nn.Module, measures: Measures) -> None:
    """Have parameters stay as they are in training, as whoever fine-tunes a part of a model does."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for glob in measures.frozen:
        chosen = [name for name in names if fnmatchcase(name, glob)]
        if not chosen:
            raise UsageError(f"--freeze {glob}: no parameter has such a name; they are {listed(tuple(names))}")
        for name in chosen:
            model.get_parameter(name).requires_grad_(requires_grad=False)
    if measures.frozen and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("--freeze leaves no parameter to train; to run forward only, --no-backward")


def _recompute(model: Any) -> None:  # noqa: ANN401  # a class of transformers
    """Have layers computed again in the backward pass.

    Never reentrant: with transformers 5.23 that gives wrong gradients where layers share KV (cosine 0.56 to 0.91).
    Layers are computed again only while training, so these modules, and no other, think that they are: in training,
    Gemma 3n's AltUp would clamp its weights in place, and dropout and batch statistics would change what comes out.
    """
    how = {"use_reentrant": False}
    try:
        if hasattr(model, "activation_checkpointing_enable"):  # its name since transformers 5.23
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    except ValueError as error:
        raise UsageError(f"--gradient-checkpointing: {error}") from error
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            for name, value in vars(module).items():
                if isinstance(value, float) and "drop" in name:
                    setattr(module, name, 0.0)
