"""Reading back what :mod:`gemma_doctor.reports.machine_verification` has written, from the independent values only."""

from __future__ import annotations

from typing import Literal, get_args

from gemma_doctor.choices import MODALITIES, MODES
from gemma_doctor.nodes import Node
from gemma_doctor.records import Scalar
from gemma_doctor.reports.figures import read_figures
from gemma_doctor.verifications import (
    Activation,
    Drift,
    FailingOp,
    LossScales,
    LossScaleTrial,
    ModuleDrift,
    Operand,
    Phase,
    Run,
    Verification,
)

__all__ = ["read_activation", "read_scalar", "read_shape", "read_verification"]

_OUTCOMES: tuple[Literal["sound", "overflow", "underflow"], ...] = ("sound", "overflow", "underflow")


def read_activation(node: Node) -> Activation:
    """One operation's outputs."""
    return Activation(
        run=node.member("run").choice(MODALITIES),
        phase=node.member("phase").choice(get_args(Phase)),
        module=node.member("module").text(),
        op=node.member("op").text(),
        step=node.member("step").count(),
        calls=node.member("calls").count(),
        dtype=node.member("dtype").text(),
        shape=read_shape(node),
        stats=read_figures(node),
    )


def read_shape(node: Node) -> tuple[int, ...]:
    """The extents of anything that has a ``shape``."""
    return tuple(extent.count() for extent in node.member("shape").items())


def read_scalar(node: Node) -> Scalar:
    """A value of evidence or of a model's configuration."""
    if isinstance(node.value, (str, bool)) or node.value is None:
        return node.value
    return node.number()


def read_verification(node: Node) -> Verification:
    """How a model was run and what came of it."""
    return Verification(
        device=node.member("device").text(),
        mode=node.member("mode").choice(MODES),
        backward=node.member("backward").boolean(),
        guarded=node.member("guarded").boolean(),
        runs=tuple(map(_run, node.member("runs").items())),
        imitated=tuple(item.text() for item in node.member("imitated").items()),
        not_imitated=tuple(item.text() for item in node.member("not_imitated").items()),
        against=node.member("against").maybe(Node.text),
        peak_memory=node.member("peak_memory").maybe(Node.count),
        frozen=tuple(item.text() for item in node.member("frozen").items()),
    )


def _run(node: Node) -> Run:
    return Run(
        modality=node.member("modality").choice(MODALITIES),
        inputs=node.member("inputs").text(),
        operations=node.member("operations").count(),
        seconds=_magnitude(node.member("seconds")),
        loss=node.member("loss").maybe(Node.number),
        reference_loss=node.member("reference_loss").maybe(Node.number),
        output=node.member("output").text(),
        drift=node.member("drift").maybe(_drift),
        bfloat16_drift=node.member("bfloat16_drift").maybe(_drift),
        against_drift=node.member("against_drift").maybe(_drift),
        modules=tuple(map(_module, node.member("modules").items())),
        first_failure=node.member("first_failure").maybe(_failure),
        loss_scales=node.member("loss_scales").maybe(_loss_scales),
    )


def _magnitude(node: Node) -> int | float:
    if (number := node.number()) < 0:
        node.expected("a number of at least 0")
    return number


def _drift(node: Node) -> Drift:
    return Drift(
        kl=node.member("kl").maybe(Node.number),
        top1=_share(node.member("top1")),
        error=node.member("error").maybe(_magnitude),
    )


def _share(node: Node) -> int | float:
    if (number := _magnitude(node)) > 1:
        node.expected("a share from 0 to 1")
    return number


def _failure(node: Node) -> FailingOp:
    return FailingOp(
        activation=read_activation(node.member("activation")),
        operands=tuple(map(_operand, node.member("operands").items())),
        config={key: read_scalar(item) for key, item in node.member("config").table().items()},
        reference_absmax=node.member("reference_absmax").maybe(_magnitude),
    )


def _operand(node: Node) -> Operand:
    return Operand(
        name=node.member("name").text(),
        dtype=node.member("dtype").text(),
        shape=read_shape(node),
        stats=read_figures(node),
    )


def _loss_scales(node: Node) -> LossScales:
    return LossScales(tuple(map(_trial, node.member("trials").items())))


def _trial(node: Node) -> LossScaleTrial:
    scale = node.member("scale")
    if (number := scale.number()) <= 0:
        scale.expected("a number above 0")
    return LossScaleTrial(
        scale=number,
        outcome=node.member("outcome").choice(_OUTCOMES),
        module=node.member("module").maybe(Node.text),
        parameters=node.member("parameters").count(),
    )


def _module(node: Node) -> ModuleDrift:
    return ModuleDrift(
        module=node.member("module").text(),
        kind=node.member("kind").text(),
        absmax=node.member("absmax").maybe(_magnitude),
        nonfinite=node.member("nonfinite").count(),
        reference_absmax=node.member("reference_absmax").maybe(_magnitude),
        error=node.member("error").maybe(_magnitude),
        bfloat16_error=node.member("bfloat16_error").maybe(_magnitude),
        collapsed=_share(node.member("collapsed")),
        mean_square_min=node.member("mean_square_min").maybe(_magnitude),
    )
