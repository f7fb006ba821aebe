"""A verification built in memory: a text run that a convolution ended, and a sound image run."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from sample_reports import report

from gemma_doctor.records import Report
from gemma_doctor.tensors import TensorStats
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

SOUND = TensorStats(count=8, minimum=-4.0, maximum=2.0, squares=Fraction(32))
BROKEN = TensorStats(count=8, inf=4, minimum=-4.0, maximum=65504.0, squares=Fraction(65504) ** 2)


def activation(op: str = "aten.mul", module: str = "model.layers.0.mlp", stats: TensorStats = SOUND) -> Activation:
    """An operation of the text run, its outputs in float16."""
    return Activation("text", "forward", module, op, 7, 1, "F16", (2, 4), stats)


FAILURE = FailingOp(
    activation=activation("aten.convolution", "tower.conv", BROKEN),
    operands=(Operand("tower.conv.weight", "F16", (2, 4), SOUND),),
    config={"hidden_act": "gelu", "hidden_size": 2048, "eps": 1e-6, "tied": True, "cap": None},
    reference_absmax=131008.0,
)
RUNS = (
    Run(
        modality="text",
        inputs="32 tokens",
        operations=2,
        seconds=0.25,
        loss=None,
        reference_loss=6.5,
        drift=Drift(None, 0.25, None),
        bfloat16_drift=Drift(0.125, 1.0, 0.0625),
        against_drift=Drift(0.5, 0.75, 0.375),
        modules=(ModuleDrift("tower.conv", "Conv2d", 65504.0, 2, 131008.0, None, 0.01, 0.5, 0.25),),
        first_failure=FAILURE,
        loss_scales=LossScales(
            (
                LossScaleTrial(1.0, "underflow", "a", 2),
                LossScaleTrial(2.0, "sound"),
                LossScaleTrial(16.0, "sound"),
                LossScaleTrial(32.0, "overflow", "b", 1),
            )
        ),
    ),
    Run(
        "image",
        "1 image of 768 x 768",
        1,
        0.5,
        loss=2.5,
        reference_loss=2.5,
        loss_scales=LossScales((LossScaleTrial(4.0, "sound"),)),
    ),
)
VERIFICATION = Verification(
    device="cpu",
    mode="half",
    backward=True,
    guarded=False,
    runs=RUNS,
    imitated=("accumulates in float16",),
    not_imitated=("speed",),
    against="elsewhere",
    peak_memory=4096,
    frozen=("tower.*",),
)


def verified(verification: Verification = VERIFICATION) -> Report:
    """The report of a verification."""
    acts = (activation(), FAILURE.activation)
    return replace(report(), verification=verification, activations=acts)
