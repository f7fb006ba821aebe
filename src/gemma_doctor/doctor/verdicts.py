"""What a report comes to: the exit code, and the report where there was nothing to examine."""

from __future__ import annotations

from gemma_doctor.choices import FailOn, failing
from gemma_doctor.doctor.options import Options
from gemma_doctor.records import Coverage, Report, Skipped, Source
from gemma_doctor.version import __version__

__all__ = ["exit_code", "unread"]


def exit_code(report: Report, fail_on: FailOn = "error") -> int:
    """The exit code that a report earns.

    Args:
        report: The report.
        fail_on: Least severity of a finding that counts as failure.

    Returns:
        2 where something was left unmeasured, whatever else was found; 1 where a finding is grave enough;
        else 0.
    """
    if not report.complete:
        return 2
    return int(any(map(report.count, failing(fail_on))))


def unread(source: str, options: Options, why: str) -> Report:
    """The report on a source that could not be examined: incomplete, so that nothing takes it for a healthy one.

    Args:
        source: The source.
        options: How it was to be examined.
        why: The error's message.
    """
    return Report(
        version=__version__,
        source=Source(source, None, "safetensors", "generic", ()),
        target_dtype=options.target_dtype,
        loader=options.loader,
        coverage=Coverage(1, 0, (Skipped("*", why),)),
        findings=(),
        tensors=(),
        seconds=0.0,
    )
