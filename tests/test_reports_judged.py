"""What a report says of one run: whether it failed, was judged in full, forward only, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sample_reports import finding
from sample_verifications import RUNS, VERIFICATION, verified

from gemma_doctor.choices import Severity
from gemma_doctor.records import Coverage, Finding, Report, Skipped
from gemma_doctor.reports.judged import badge, without_backward
from gemma_doctor.verifications import LossScales, Run

SOUND = RUNS[1]


def report_of(run: Run, *findings: Finding, unjudged: tuple[str, ...] = (), backward: bool = True) -> Report:
    """A report of this run alone, some of which was not judged."""
    return replace(
        verified(replace(VERIFICATION, runs=(run,), backward=backward)),
        findings=findings,
        coverage=Coverage(1, 1 - len(unjudged), tuple(Skipped(one, "why") for one in unjudged)),
    )


def of(run: str, severity: Severity) -> Finding:
    """A finding of a run of this kind."""
    return replace(finding(severity=severity), evidence={"run": run})


PARTLY = "forward pass sound, backward pass not judged"
BACKWARD, WHOLE = "float16 backward pass, image", "float16 run, image"


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (report_of(SOUND), ("sound", "well")),
        (report_of(SOUND, of("text", "error")), ("sound", "well")),
        (report_of(SOUND, of("image", "error")), ("fails", "error")),  # collapsed, say: no operation failed
        (report_of(SOUND, of("image", "warning")), ("at risk", "warning")),
        (report_of(SOUND, unjudged=(BACKWARD,)), (PARTLY, "warning")),
        (report_of(SOUND, of("image", "warning"), unjudged=(BACKWARD,)), (PARTLY, "warning")),
        (report_of(SOUND, unjudged=("float16 backward pass, text",)), ("sound", "well")),
        (report_of(replace(SOUND, loss_scales=None)), (PARTLY, "warning")),
        (report_of(replace(SOUND, loss_scales=None), backward=False), ("sound", "well")),
        (report_of(replace(SOUND, loss_scales=None, loss=None), unjudged=(WHOLE,)), ("not judged", "warning")),
        (report_of(replace(SOUND, first_failure=RUNS[0].first_failure)), ("fails", "error")),
    ],
)
def test_a_run_is_called_sound_where_all_that_was_asked_of_it_was_judged_and_sound(
    report: Report, said: tuple[str, str]
) -> None:
    (run,) = report.verification.runs if report.verification else ()
    assert badge(report, run) == said


@pytest.mark.parametrize(
    ("run", "unjudged", "said"),
    [
        (SOUND, (), ""),
        (SOUND, (BACKWARD,), "backward pass not judged: in float32, too, gradients are inf or NaN"),
        (replace(SOUND, loss_scales=None, loss=None), (), "backward pass not run: the float16 loss is not finite"),
        (replace(SOUND, loss_scales=None), (BACKWARD,), "backward pass not run: the loss depends on no parameter that"),
        (replace(SOUND, loss_scales=LossScales(())), (), ""),
    ],
)
def test_why_a_backward_pass_was_not_judged(run: Run, unjudged: tuple[str, ...], said: str) -> None:
    found = without_backward(report_of(run, unjudged=unjudged), run)
    assert (found.startswith(said), bool(found)) == (True, bool(said))
    assert not without_backward(report_of(run, unjudged=unjudged, backward=False), run)
