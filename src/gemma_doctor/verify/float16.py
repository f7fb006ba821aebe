"""The run that is judged: float16, forward and backward, every operation watched."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gemma_doctor.choices import Modality
from gemma_doctor.tensors import TensorStats
from gemma_doctor.verifications import Activation, FailingOp, LossScales, ModuleDrift, Run, headroom
from gemma_doctor.verify import blame
from gemma_doctor.verify.bench import Bench
from gemma_doctor.verify.drift import drift
from gemma_doctor.verify.events import Events
from gemma_doctor.verify.inputs import Batch
from gemma_doctor.verify.outputs import Comparing, seeing, worst
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.reference import Bfloat16, Reference, peaks
from gemma_doctor.verify.scales import START, search, tried
from gemma_doctor.verify.step import gradients, parameter_stats

__all__ = ["Candidate"]


@dataclass(slots=True)
class Candidate:
    """A loaded float16 model and what is known of it before it runs.

    Attributes:
        bench: Where and how it runs.
        model: It.
        places: Its places.
        weights: Figures of its parameters and persistent buffers as they were cast.
        tensors: These themselves.
    """

    bench: Bench
    model: nn.Module
    places: Places = field(init=False)
    weights: Mapping[str, TensorStats] = field(init=False)
    tensors: Mapping[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.places = Places.of(self.model)
        self.weights = parameter_stats(self.model)
        self.tensors = self.model.state_dict(keep_vars=True)

    def run(self, inputs: Batch, reference: Reference | None, beside: Bfloat16 | None) -> tuple[Run, list[Activation]]:
        """Run it with one input and judge every operation.

        Args:
            inputs: What it is given.
            reference: The same in float32; None where only infinities and NaNs are to be told.
            beside: The same in bfloat16.
        """
        started = time.perf_counter()
        comparing = Comparing({} if reference is None else reference.kept)
        trace = self.bench.trace(self.places)
        measures = self.bench.measures
        amp = measures.mode == "amp"
        self.bench.step(f"{inputs.modality} run in float16")
        with self.places.watching(), torch.set_grad_enabled(measures.backward):
            with seeing(self.model, comparing), trace:
                step = self.bench.run(self.model, inputs, torch.float32 if amp else torch.float16, amp=amp)
            events = trace.events()
            seconds = time.perf_counter() - started
            failure = self._failure(inputs.modality, events, reference)
            scales = None
            if step.trains and bool(step.loss.isfinite()):  # otherwise no scale can be sound
                scales = self._scales(inputs.modality, step.loss, reference)
                self.bench.step(f"{inputs.modality} run in float16, backward")
                self._backward(step.loss, scales, trace)
                events = trace.events()
                failure = failure or self._gradient_failure(inputs.modality, events, reference, scales)
        loss = float(step.loss.detach())
        run = Run(
            modality=inputs.modality,
            inputs=inputs.words,
            operations=len(events),
            seconds=seconds,
            loss=loss if math.isfinite(loss) else None,
            reference_loss=None if reference is None else reference.loss,
            drift=None if reference is None else drift(reference.logits, step.logits),
            bfloat16_drift=None if beside is None else beside.drift,
            modules=() if reference is None else _modules(comparing, reference, beside),
            first_failure=failure,
            loss_scales=scales,
        )
        return run, [*self._loaded(inputs.modality), *blame.merged(events, inputs.modality)]

    def _scales(self, run: Modality, loss: Tensor, reference: Reference | None) -> LossScales:
        """The loss scales that were tried."""
        true = {} if reference is None else reference.gradients

        def backward(scale: float) -> Mapping[str, TensorStats]:
            self.bench.step(f"{run} run in float16, backward at loss scale {scale:g}")
            return gradients(self.model, loss, scale)

        if self.bench.measures.loss_scale is not None:
            return tried(backward, true, self.bench.measures.loss_scale)
        return search(backward, true, START if reference is None else _guess(reference))

    def _backward(self, loss: Tensor, scales: LossScales, trace: AbstractContextManager[object]) -> None:
        """The backward pass once more, watched, at the largest sound scale, or else at the smallest that was tried."""
        scale = max(scales.sound, default=min(trial.scale for trial in scales.trials))
        with trace:
            gradients(self.model, loss, scale)

    def _failure(self, run: Modality, events: Events, reference: Reference | None) -> FailingOp | None:
        """The first parameter that did not survive the cast, or else the first operation that failed."""
        name = blame.first_bad_weight(self.weights, None if reference is None else reference.weights)
        if name is not None:
            stored = None if reference is None else reference.weights.get(name)
            return FailingOp(self._weight(run, name), reference_absmax=None if stored is None else stored.absmax)
        return self._scene(run, events, reference).first_failure()

    def _gradient_failure(
        self, run: Modality, events: Events, reference: Reference | None, scales: LossScales
    ) -> FailingOp | None:
        """The operation that failed first where every loss scale overflows."""
        if any(trial.outcome != "overflow" for trial in scales.trials):
            return None
        return self._scene(run, events, reference).first_failure()

    def _scene(self, run: Modality, events: Events, reference: Reference | None) -> blame.Scene:
        figures = None if reference is None else reference.figures
        return blame.Scene(run, self.model, events, self.weights, figures)

    def _loaded(self, run: Modality) -> list[Activation]:
        return [self._weight(run, name) for name in self.weights]

    def _weight(self, run: Modality, name: str) -> Activation:
        """A parameter as it was cast, as a record."""
        module, _, short = name.rpartition(".")
        return blame.loaded(run, module, short, self.tensors[name], self.weights[name])


def _guess(reference: Reference) -> int:
    """The exponent of the largest loss scale at which the reference's largest gradient of a parameter would fit.

    What lies between is mostly smaller, and what is larger (a norm's powers, say) is computed in float32.
    """
    peak = max((stats.absmax or 0.0 for stats in reference.gradients.values()), default=0.0)
    return math.floor(headroom(peak) or START)


def _modules(comparing: Comparing, reference: Reference, beside: Bfloat16 | None) -> tuple[ModuleDrift, ...]:
    """Each module's worst call."""
    known = peaks(reference)
    errors = {} if beside is None else beside.errors
    return tuple(
        ModuleDrift(
            module=module,
            kind=one.kind,
            absmax=one.absmax,
            nonfinite=one.nonfinite,
            reference_absmax=known[module][0],
            error=one.error if math.isfinite(one.error) else None,
            bfloat16_error=_finite(errors.get(module)),
            collapsed=one.collapsed,
            mean_square_min=known[module][1],
        )
        for module, one in worst(comparing.results()).items()
    )


def _finite(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else number
