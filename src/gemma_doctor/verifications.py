"""What running a model showed: frozen records, from the output of one operation to the whole verification.

Standard library only. Names of modules are the running model's own (``model.language_model.layers.0.mlp``), and so are
names of operations (``aten.convolution``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from gemma_doctor.choices import Modality, Mode
from gemma_doctor.tensors import FP16_MAX, TensorStats

__all__ = [
    "BACKWARD_PASS",
    "WHOLE_RUN",
    "Activation",
    "Drift",
    "FailingOp",
    "LossScaleTrial",
    "LossScales",
    "ModuleDrift",
    "Operand",
    "Phase",
    "Run",
    "Verification",
    "bits",
    "headroom",
]

WHOLE_RUN, BACKWARD_PASS = "float16 run, ", "float16 backward pass, "
"""What coverage calls what was not judged, before the modality of its input."""

Phase: TypeAlias = Literal["load", "forward", "backward"]


@dataclass(frozen=True, slots=True)
class Activation:
    """The floating-point outputs of one operation at one place of the model, over one run.

    Attributes:
        run: The run, by the modality of its input.
        phase: ``load`` (a parameter as it was cast), ``forward`` or ``backward``.
        module: The module that was running; empty for the model itself.
        op: The operation, such as ``"aten.convolution"``; for a parameter, its name.
        step: Place of its first output in the order of execution.
        calls: Outputs that ``stats`` joins.
        dtype: The format's name of their dtype, such as ``"F16"``.
        shape: Shape of the first output.
        stats: What the numbers of all outputs are: the record that weights have too.
    """

    run: Modality
    phase: Phase
    module: str
    op: str
    step: int
    calls: int
    dtype: str
    shape: tuple[int, ...]
    stats: TensorStats

    @property
    def nonfinite(self) -> int:
        """NaNs and infinities."""
        return self.stats.nan + self.stats.inf

    @property
    def peak(self) -> float | None:
        """Largest finite magnitude; where -65504 hides positions, as transformers' masks do, the largest number."""
        masked = self.dtype == "F16" and self.stats.minimum == -FP16_MAX
        return max(self.stats.maximum or 0.0, 0.0) if masked else self.stats.absmax

    @property
    def headroom(self) -> float | None:
        """Bits between its peak and 65504; None where all is zero or nothing finite."""
        return headroom(self.peak)


def headroom(absmax: float | None) -> float | None:
    """Bits between a magnitude and float16's largest: log2(65504 / absmax). Negative beyond it; None for 0 or None."""
    return math.log2(FP16_MAX / absmax) if absmax else None


def bits(number: float) -> str:
    """A difference of magnitudes in words, in two digits: ``"0.34 bits"``, ``"1 bit"``."""
    digits = f"{number:.2g}"
    return f"{digits} bit" if digits == "1" else f"{digits} bits"


@dataclass(frozen=True, slots=True)
class Operand:
    """What went into an operation.

    Attributes:
        name: A parameter's name, or the operation whose output it is (``"aten.mul of model.embed_tokens"``).
        dtype: The format's name of its dtype.
        shape: Its shape.
        stats: What its numbers are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stats: TensorStats


@dataclass(frozen=True, slots=True)
class FailingOp:
    """The first operation of a run that failed, and the chain that led to it.

    Attributes:
        activation: Its output.
        operands: What went into it.
        config: Values of the model's configuration that bear on it.
        reference_absmax: Largest magnitude of the same output in the reference; None without one.
    """

    activation: Activation
    operands: tuple[Operand, ...] = ()
    config: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    reference_absmax: float | None = None

    @property
    def read(self) -> tuple[Operand, ...]:
        """What went into it, the largest magnitude first."""
        return tuple(sorted(self.operands, key=lambda one: one.stats.absmax or 0.0, reverse=True))

    @property
    def excess(self) -> float | None:
        """Bits by which the reference's magnitude leaves float16's range; None without a reference."""
        bits = headroom(self.reference_absmax)
        return None if bits is None else -bits


@dataclass(frozen=True, slots=True)
class ModuleDrift:
    """One module's float16 output against the reference's.

    Attributes:
        module: The module.
        kind: Its class.
        absmax: Largest finite magnitude of the float16 output; None where nothing is finite.
        nonfinite: NaNs and infinities in it.
        reference_absmax: Largest magnitude of the reference's output.
        error: ||y16 - y|| / ||y|| over all elements (Frobenius norms); None where it is not finite.
        bfloat16_error: The same for a bfloat16 run of the same inputs; None without one.
        collapsed: Share of positions (vectors along the channels) that are zero in float16 and not in the reference.
        mean_square_min: Least mean square over the channels at any position of the reference's output; None where it
            has none.
    """

    module: str
    kind: str
    absmax: float | None
    nonfinite: int
    reference_absmax: float | None
    error: float | None
    bfloat16_error: float | None = None
    collapsed: float = 0.0
    mean_square_min: float | None = None


@dataclass(frozen=True, slots=True)
class Drift:
    """A run's output against the reference's, over all positions.

    Attributes:
        kl: Mean Kullback-Leibler divergence KL(reference || run) of the distributions that the numbers are the logits
            of, in nats; None where it is not finite.
        top1: Share of positions at which both have the same most likely class.
        error: ||y' - y|| / ||y|| over all elements (Frobenius norms); None where it is not finite.
    """

    kl: float | None
    top1: float
    error: float | None = None


@dataclass(frozen=True, slots=True)
class LossScaleTrial:
    """One backward pass at one loss scale.

    Attributes:
        scale: What the loss was multiplied by.
        outcome: ``sound``, ``overflow`` (a gradient is inf or NaN) or ``underflow`` (gradients of a parameter vanish).
        module: The module that decided it; None where it was sound.
        parameters: How many parameters' gradients overflow, or vanish.
    """

    scale: float
    outcome: Literal["sound", "overflow", "underflow"]
    module: str | None = None
    parameters: int = 0


@dataclass(frozen=True, slots=True)
class LossScales:
    """The loss scales that were tried, from small to large.

    Attributes:
        trials: All of them.
    """

    trials: tuple[LossScaleTrial, ...]

    @property
    def sound(self) -> tuple[float, ...]:
        """The scales at which every gradient is finite and none has vanished."""
        return tuple(trial.scale for trial in self.trials if trial.outcome == "sound")

    @property
    def room(self) -> float | None:
        """Bits between the least and the largest sound scale; None where none is sound."""
        return math.log2(max(self.sound) / min(self.sound)) if self.sound else None


@dataclass(frozen=True, slots=True)
class Run:
    """A forward and perhaps a backward pass with one kind of input.

    Attributes:
        modality: The kind.
        inputs: What was given, in words.
        operations: Floating-point outputs that were measured.
        seconds: Wall-clock time of the traced pass.
        loss: Loss of the float16 run; None where it is not finite, or there is none.
        reference_loss: Loss of the reference.
        output: What of the model's output is compared, by transformers' name: ``logits``, or, of a model without a
            head, its first output, such as ``last_hidden_state``.
        drift: It against the reference's; None without one.
        bfloat16_drift: The same for a bfloat16 run.
        against_drift: The reference's against that of the other checkpoint's reference.
        modules: Each module's output against the reference's, in the order of execution.
        first_failure: The operation that failed first; None where none did.
        loss_scales: The search for a loss scale; None without a backward pass.
    """

    modality: Modality
    inputs: str
    operations: int
    seconds: float
    loss: float | None = None
    reference_loss: float | None = None
    output: str = "logits"
    drift: Drift | None = None
    bfloat16_drift: Drift | None = None
    against_drift: Drift | None = None
    modules: tuple[ModuleDrift, ...] = ()
    first_failure: FailingOp | None = None
    loss_scales: LossScales | None = None

    @property
    def unjudged(self) -> bool:
        """Whether its output is not finite and no operation failed: then the reference's is not finite either."""
        return self.drift is not None and self.drift.kl is None and self.first_failure is None

    @property
    def classifies(self) -> bool:
        """Whether what is compared are logits: of other numbers a divergence and a most likely class say nothing."""
        return self.output.endswith("logits")


@dataclass(frozen=True, slots=True)
class Verification:
    """How a model was run, and what came of it.

    Attributes:
        device: What it ran on, in words.
        mode: ``half`` or ``amp``.
        backward: Whether gradients were asked for.
        guarded: Whether the float16-safe kernels took the place of the model's own.
        runs: One for each kind of input.
        imitated: What of a T4 was imitated, a sentence each.
        not_imitated: What was not.
        against: SOURCE of the checkpoint that this one was compared with.
        peak_memory: Largest memory that tensors took on the device, in bytes; None where it cannot be told.
        frozen: Globs over names of parameters that were not trained.
    """

    device: str
    mode: Mode
    backward: bool
    guarded: bool
    runs: tuple[Run, ...]
    imitated: tuple[str, ...] = ()
    not_imitated: tuple[str, ...] = ()
    against: str | None = None
    peak_memory: int | None = None
    frozen: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether any run came to its backward pass."""
        return any(run.loss_scales is not None for run in self.runs)

    @property
    def sound(self) -> bool:
        """Whether no operation of any run failed."""
        return all(run.first_failure is None for run in self.runs)
