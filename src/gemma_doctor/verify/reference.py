"""What the same inputs give in float32, and how far bfloat16, whose range is float32's, drifts from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gemma_doctor.choices import Modality
from gemma_doctor.tensors import TensorStats
from gemma_doctor.verifications import Drift
from gemma_doctor.verify.bench import Bench
from gemma_doctor.verify.drift import drift
from gemma_doctor.verify.events import Key
from gemma_doctor.verify.inputs import Batch
from gemma_doctor.verify.loading import Subject
from gemma_doctor.verify.outputs import Call, Comparing, Keeping, Kept, seeing, worst
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.step import gradients, parameter_stats

__all__ = ["Bfloat16", "Reference", "bfloat16", "logits", "peaks", "references"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A float32 run with one input.

    Attributes:
        kept: What each module returned.
        figures: What each operation wrote, by its place.
        weights: The parameters and persistent buffers.
        gradients: The parameters' gradients at loss scale 1; empty without a backward pass.
        logits: The logits, on the host.
        loss: The loss.
        output: What transformers calls these logits: ``last_hidden_state``, say, where there are none.
    """

    kept: Mapping[Call, Kept]
    figures: Mapping[Key, TensorStats]
    weights: Mapping[str, TensorStats]
    gradients: Mapping[str, TensorStats]
    logits: Tensor
    loss: float
    output: str = "logits"

    @property
    def sound(self) -> bool:
        """Whether it can be a reference: finite logits, and a finite loss."""
        return bool(self.logits.isfinite().all()) and math.isfinite(self.loss)


@dataclass(frozen=True, slots=True)
class Bfloat16:
    """A bfloat16 run with one input.

    Attributes:
        drift: Its logits against the reference's.
        errors: Each module's relative error.
    """

    drift: Drift
    errors: Mapping[str, float]


def references(bench: Bench, subject: Subject, batches: Sequence[Batch]) -> dict[Modality, Reference]:
    """The float32 runs, one for each input."""
    with bench.model(subject, torch.float32) as model:
        places, weights = Places.of(model), parameter_stats(model)
        return {item.modality: _reference(bench, model, places, weights, item) for item in batches}


def _reference(
    bench: Bench, model: nn.Module, places: Places, weights: Mapping[str, TensorStats], inputs: Batch
) -> Reference:
    keeping, trace, backward = Keeping(), bench.trace(places), bench.measures.backward
    with places.watching(), torch.set_grad_enabled(backward):
        bench.step(f"{inputs.modality} run in float32")
        with seeing(model, keeping), trace:
            step = bench.run(model, inputs, torch.float32)
        grads: Mapping[str, TensorStats] = {}
        if step.trains:
            bench.step(f"{inputs.modality} run in float32, backward")
            with trace:
                grads = gradients(model, step.loss, 1.0)
    return Reference(
        keeping.kept, trace.events().by_key(), weights, grads, step.logits.cpu(), float(step.loss.detach()), step.name
    )


def logits(bench: Bench, subject: Subject, batches: Sequence[Batch]) -> dict[Modality, Tensor]:
    """What another checkpoint says to the same inputs in float32."""
    with bench.model(subject, torch.float32) as model, torch.no_grad():
        bench.step("the other checkpoint in float32")
        return {item.modality: bench.run(model, item, torch.float32).logits.cpu() for item in batches}


def bfloat16(
    bench: Bench, subject: Subject, batches: Sequence[Batch], true: Mapping[Modality, Reference]
) -> dict[Modality, Bfloat16]:
    """The bfloat16 runs beside their references."""
    found: dict[Modality, Bfloat16] = {}
    with bench.model(subject, torch.bfloat16) as model, torch.no_grad():
        for item in batches:
            bench.step(f"{item.modality} run in bfloat16")
            reference = true[item.modality]
            comparing = Comparing(reference.kept)
            with seeing(model, comparing):
                step = bench.run(model, item, torch.bfloat16)
            errors = {module: one.error for module, one in worst(comparing.results()).items()}
            found[item.modality] = Bfloat16(drift(reference.logits, step.logits), errors)
    return found


def peaks(reference: Reference) -> dict[str, tuple[float, float | None]]:
    """Each module's largest output over all of its calls, and its least mean square over the channels."""
    found: dict[str, tuple[float, float | None]] = {}
    for (module, _), kept in reference.kept.items():
        peak, square = found.get(module, (0.0, None))
        squares = [one for one in (square, kept.mean_square_min) if one is not None]
        found[module] = max(peak, kept.peak), min(squares, default=None)
    return found
