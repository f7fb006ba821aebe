"""From a sick folder to a mended one, as the command does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plans import diagnose

from gemma_doctor.architectures import detect_layout, identify, output_limit
from gemma_doctor.checkpoint import Checkpoint, open_checkpoint, sha256
from gemma_doctor.examination import Examination
from gemma_doctor.inspect.survey import survey
from gemma_doctor.records import Loader, MeasuredTensor, TensorInfo, TensorStats
from gemma_doctor.repair.apply import apply
from gemma_doctor.repair.calibration import Calibration
from gemma_doctor.repair.plan import Plan
from gemma_doctor.repair.planner import make_plan


def examined(folder: Path, loader: Loader = "transformers") -> Examination:
    """A checkpoint on disk, measured by the kernels."""
    checkpoint = open_checkpoint(folder)
    model = identify(checkpoint.config)
    layout = detect_layout(model, checkpoint.tensors)
    on_disk = {model.canonical(name, layout): name for name in checkpoint.tensors}

    def measured(info: TensorInfo, stats: TensorStats) -> MeasuredTensor:
        canonical = model.canonical(info.name, layout)
        known = model.expected.get(canonical)
        role = known.role if known else model.role(info)
        return MeasuredTensor(info, stats, role, output_limit(model, canonical, role))

    found = survey(checkpoint, checkpoint.tensors.values()).stats
    head, embedding = (on_disk.get(name) for name in model.tied_head or ("", ""))
    return Examination(
        checkpoint=checkpoint,
        tensors={name: measured(checkpoint.tensors[name], stats) for name, stats in found.items()},
        model=model,
        layout=layout,
        on_disk=on_disk,
        selected=True,
        target_dtype="float16",
        loader=loader,
        tied_head_equal=_same_bytes(checkpoint, head, embedding) if head and embedding else None,
    )


def plan(
    folder: Path,
    *passes: str,
    rules: Sequence[str] = (),
    loader: Loader = "transformers",
    calibration: Calibration | None = None,
) -> Plan:
    """What these passes (all of the usual ones where none is named) would do about these rules' findings."""
    exam = examined(folder, loader)
    findings = diagnose(exam, *rules)
    return make_plan(exam, findings, passes=passes, calibration=calibration, source=str(folder), version="1")


def carry_out(what: Plan, folder: Path, output: Path) -> Path:
    """The folder with the plan's result."""
    return apply(what, open_checkpoint(folder), output).output


def _same_bytes(checkpoint: Checkpoint, *names: str) -> bool:
    return len({sha256(checkpoint, checkpoint.tensors[name]) for name in names}) == 1
