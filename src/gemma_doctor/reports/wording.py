"""Numbers and verdicts in plain words, the same in every renderer for people."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_doctor.records import SEVERITIES, Report

__all__ = ["counted", "listed", "parameters", "size", "state", "verdict"]

_BILLION, _MILLION = 10**9, 10**6
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def counted(number: int, noun: str) -> str:
    """``"1 error"``, ``"1,556 tensors"``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(words: Sequence[str]) -> str:
    """``"a"``, ``"a and b"``, ``"a, b and c"``."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def size(nbytes: float) -> str:
    """Bytes in decimal units with three digits, such as ``"10.9 GB"``."""
    for unit, name in _UNITS:
        if nbytes >= unit:
            return f"{nbytes / unit:.3g} {name}"
    return f"{nbytes:.0f} B"


def parameters(number: int) -> str:
    """``"5.44 billion parameters"``; exact below a million."""
    if number >= _BILLION:
        return f"{number / _BILLION:.3g} billion parameters"
    return f"{number / _MILLION:.3g} million parameters" if number >= _MILLION else counted(number, "parameter")


def _tally(report: Report) -> str:
    """``"3 errors, 12 warnings"``: the findings that count by severity; empty where there are none."""
    counts = ((report.count(severity), severity) for severity in SEVERITIES)
    return ", ".join(counted(number, severity) for number, severity in counts if number)


def verdict(report: Report) -> str:
    """The report in one line: how the checkpoint is, how many findings, and what the target dtype does to it."""
    aside = f"{counted(len(report.suppressed), 'finding')} set aside" if report.suppressed else ""
    counts = ", ".join(part for part in (_tally(report), aside) if part)
    return f"{state(report)}{': ' if counts else ''}{counts}. {_prospect(report)}"


def state(report: Report) -> str:
    """How the checkpoint is, in a word or two; the verdict begins with it."""
    if not report.complete:
        return _incomplete(report)
    if report.worst in {None, "note"} and any(item.finding.severity != "note" for item in report.suppressed):
        return "Nothing new"
    return {"error": "Sick", "warning": "At risk", "note": "Healthy", None: "Healthy"}[report.worst]


def _incomplete(report: Report) -> str:
    expected, measured = report.coverage.expected, report.coverage.measured
    if not measured:
        return "Could not tell, no tensor was measured"
    return f"Could not tell, {expected - measured:,} of {counted(expected, 'tensor')} not measured"


def _prospect(report: Report) -> str:
    """What the target dtype makes of the weights; nothing is said that was not measured."""
    floats = [tensor.stats for tensor in report.tensors if tensor.info.is_float]
    broken = sum(stats.nan + stats.inf for stats in floats)
    lost = sum(stats.fp16_overflow for stats in floats) if report.target_dtype == "float16" else 0
    convs = sum(finding.rule == "GD104" for finding in report.findings)
    said = [f"{counted(broken, 'weight')} NaN or inf"] if broken else []
    if lost:
        said.append(f"{counted(lost, 'weight')} {'becomes' if lost == 1 else 'become'} inf")
    if convs:
        said.append(f"{counted(convs, 'convolution')} may overflow")
    return f"In {report.target_dtype}: {', '.join(said)}." if said else _sound(report)


def _sound(report: Report) -> str:
    if not report.tensors:
        return "Nothing is known about its weights."
    return f"Every measured weight {'fits float16' if report.target_dtype == 'float16' else 'is finite'}."
