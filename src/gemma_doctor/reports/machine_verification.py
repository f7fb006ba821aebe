"""A verification as JSON objects, lists and scalars; :mod:`gemma_doctor.reports.saved_verification` reads them back."""

from __future__ import annotations

from typing import Any

from gemma_doctor.reports.figures import figures, strict
from gemma_doctor.verifications import (
    Activation,
    Drift,
    FailingOp,
    LossScales,
    LossScaleTrial,
    ModuleDrift,
    Operand,
    Run,
    Verification,
)

__all__ = ["activation_dict", "verification_dict"]


def activation_dict(activation: Activation) -> dict[str, Any]:
    """One operation's outputs; the figures have the keys that a weight's have."""
    return {
        "run": activation.run,
        "phase": activation.phase,
        "module": activation.module,
        "op": activation.op,
        "step": activation.step,
        "calls": activation.calls,
        "dtype": activation.dtype,
        "shape": list(activation.shape),
        **figures(activation.stats),
        "headroom": strict(activation.headroom),
    }


def verification_dict(verification: Verification) -> dict[str, Any]:
    """How a model was run and what came of it."""
    return {
        "sound": verification.sound,
        "device": verification.device,
        "mode": verification.mode,
        "backward": verification.backward,
        "guarded": verification.guarded,
        "against": verification.against,
        "peak_memory": verification.peak_memory,
        "frozen": list(verification.frozen),
        "imitated": list(verification.imitated),
        "not_imitated": list(verification.not_imitated),
        "runs": [_run(run) for run in verification.runs],
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "modality": run.modality,
        "inputs": run.inputs,
        "operations": run.operations,
        "seconds": strict(run.seconds),
        "loss": strict(run.loss),
        "reference_loss": strict(run.reference_loss),
        "output": run.output,
        "drift": None if run.drift is None else _drift(run.drift),
        "bfloat16_drift": None if run.bfloat16_drift is None else _drift(run.bfloat16_drift),
        "against_drift": None if run.against_drift is None else _drift(run.against_drift),
        "first_failure": None if run.first_failure is None else _failure(run.first_failure),
        "loss_scales": None if run.loss_scales is None else _loss_scales(run.loss_scales),
        "modules": [_module(module) for module in run.modules],
    }


def _drift(drift: Drift) -> dict[str, Any]:
    return {"kl": strict(drift.kl), "top1": strict(drift.top1), "error": strict(drift.error)}


def _failure(failure: FailingOp) -> dict[str, Any]:
    return {
        "activation": activation_dict(failure.activation),
        "operands": [_operand(operand) for operand in failure.operands],
        "config": strict(failure.config),
        "reference_absmax": strict(failure.reference_absmax),
        "excess": strict(failure.excess),
    }


def _operand(operand: Operand) -> dict[str, Any]:
    return {
        "name": operand.name,
        "dtype": operand.dtype,
        "shape": list(operand.shape),
        **figures(operand.stats),
    }


def _loss_scales(scales: LossScales) -> dict[str, Any]:
    return {
        "trials": [_trial(trial) for trial in scales.trials],
        "sound": strict(scales.sound),
        "room": strict(scales.room),
    }


def _trial(trial: LossScaleTrial) -> dict[str, Any]:
    return {
        "scale": strict(trial.scale),
        "outcome": trial.outcome,
        "module": trial.module,
        "parameters": trial.parameters,
    }


def _module(drift: ModuleDrift) -> dict[str, Any]:
    return {
        "module": drift.module,
        "kind": drift.kind,
        "absmax": strict(drift.absmax),
        "nonfinite": drift.nonfinite,
        "reference_absmax": strict(drift.reference_absmax),
        "error": strict(drift.error),
        "bfloat16_error": strict(drift.bfloat16_error),
        "collapsed": strict(drift.collapsed),
        "mean_square_min": strict(drift.mean_square_min),
    }
