"""How each run of a verification came out, in words: what was judged of it, and what was not."""

from __future__ import annotations

from gemma_doctor.records import Report
from gemma_doctor.verifications import BACKWARD_PASS, WHOLE_RUN, Run

__all__ = ["badge", "blind", "only_backward", "without_backward"]


def only_backward(report: Report) -> int:
    """How many runs were judged forward only, though their backward pass was asked for."""
    return sum(item.tensor.startswith(BACKWARD_PASS) for item in report.coverage.skipped)


def without_backward(report: Report, run: Run) -> str:
    """Why a run's backward pass was not judged; empty where it was, or was not asked for."""
    if report.verification is None or not report.verification.backward:
        return ""
    if run.loss_scales is not None:
        unjudged = any(item.tensor == f"{BACKWARD_PASS}{run.modality}" for item in report.coverage.skipped)
        return "backward pass not judged: in float32, too, gradients are inf or NaN" if unjudged else ""
    if run.loss is None:
        return "backward pass not run: the float16 loss is not finite"
    return "backward pass not run: the loss depends on no parameter that is trained"


def blind(run: Run) -> str:
    """What is added to sound loss scales where no reference says which gradients are zero and should not be."""
    return "" if run.reference_loss is not None else ", but for gradients that vanish: no reference tells which"


def badge(report: Report, run: Run) -> tuple[str, str]:
    """A run's outcome in a word or two, and its style: ``error``, ``warning`` or ``well``."""
    own = {finding.severity for finding in report.findings if finding.evidence.get("run") == run.modality}
    if run.first_failure is not None or "error" in own:
        return "fails", "error"
    if any(item.tensor == f"{WHOLE_RUN}{run.modality}" for item in report.coverage.skipped):
        return "not judged", "warning"
    if without_backward(report, run):
        return "forward pass sound, backward pass not judged", "warning"
    return ("at risk", "warning") if "warning" in own else ("sound", "well")
