"""Numbers and verdicts in plain words, the same in every renderer for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gemma_doctor.choices import SEVERITIES
from gemma_doctor.records import Proof, Report
from gemma_doctor.reports.judged import only_backward, without_backward
from gemma_doctor.verifications import Verification

__all__ = ["assumed", "counted", "listed", "measured", "parameters", "proved", "size", "state", "unmeasured", "verdict"]

_BILLION, _MILLION = 10**9, 10**6
_THROUGH = "no operation overflowed"
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def counted(number: int, noun: str) -> str:
    """``"1 error"``, ``"1,556 tensors"``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(words: Sequence[str]) -> str:
    """``"a"``, ``"a and b"``, ``"a, b and c"``."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


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


def measured(report: Report) -> str:
    """How much was measured, in a sentence."""
    covered, seconds = report.coverage, report.seconds
    if report.verification is not None:
        forward = only_backward(report)
        runs = f"{covered.measured + forward:,} of {counted(covered.expected, 'run')}"
        return f"Judged {runs}{f', {forward:,} of them forward only,' if forward else ''} in {seconds:.3g} s."
    nbytes = sum(tensor.info.nbytes for tensor in report.tensors)
    numel = sum(tensor.info.numel for tensor in report.tensors)
    speed = f" ({size(nbytes / seconds)}/s)" if seconds > 0 else ""
    return (
        f"Measured {covered.measured:,} of {counted(covered.expected, 'tensor')}: {parameters(numel)}, "
        f"{size(nbytes)} in {seconds:.3g} s{speed}."
    )


def unmeasured(report: Report) -> Iterator[tuple[str, str, list[str]]]:
    """What was left out, for each reason: how much (``"Not measured: 3 tensors"``), the reason, and the names."""
    what, noun = ("Not measured", "tensor") if report.verification is None else ("Not judged", "run")
    reasons: dict[str, list[str]] = {}
    for item in report.coverage.skipped:
        reasons.setdefault(item.reason, []).append(item.tensor)
    for reason, names in reasons.items():
        yield f"{what}: {counted(len(names), noun)}", reason, names


def proved(proof: Proof) -> str:
    """How much of a float16 run is proved safe, in a sentence without its first words."""
    share = f"{proof.safe:,} of {counted(proof.values, 'value')} of a float16 run"
    open_scores, scores = proof.scores_safe < proof.scores, counted(proof.scores, "attention score")
    if proof.certified:
        eager = f"; eager attention is not covered: of its {scores}, {proof.scores_safe:,} fit" if open_scores else ""
        return f"{share}: it cannot overflow in the forward pass, whatever the input{eager}"
    eager = f"; with eager attention also {proof.scores_safe:,} of {scores}" if open_scores else ""
    return f"{share}, whatever the input{eager}"


def assumed(proof: Proof) -> str:
    """What a certificate takes for granted, as the end of a sentence; empty where there is none."""
    return "; ".join(proof.assumptions) if proof.certified else ""


def state(report: Report) -> str:
    """How the checkpoint is, in a word or two; the verdict begins with it."""
    if not report.complete:
        return _incomplete(report)
    set_aside = any(item.finding.severity != "note" for item in report.suppressed)
    if report.worst in {None, "note"} and (set_aside or _fails(report)):
        return "Nothing new"
    healthy = "Healthy" if report.verification is None else "Sound"
    return {"error": "Sick", "warning": "At risk", "note": healthy, None: healthy}[report.worst]


def _fails(report: Report) -> bool:
    """Whether an operation fails, though its rule be ignored."""
    return report.verification is not None and any(run.first_failure for run in report.verification.runs)


def _incomplete(report: Report) -> str:
    expected, measured = report.coverage.expected, report.coverage.measured
    forward = only_backward(report)
    if forward and forward == expected - measured:
        passes = "a backward pass was" if forward == 1 else f"{forward:,} backward passes were"
        return f"Could not tell, {passes} not judged"
    noun, done = ("tensor", "measured") if report.verification is None else ("run", "judged")
    if not measured:
        return f"Could not tell, no {noun} was {done}"
    return f"Could not tell, {expected - measured:,} of {counted(expected, noun)} not {done}"


def _prospect(report: Report) -> str:
    """What the target dtype makes of the weights; nothing is said that was not measured."""
    if report.verification is not None:
        return _ran(report, report.verification)
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


def _ran(report: Report, verification: Verification) -> str:
    """What was run, and whether it came through."""
    runs = listed([run.modality for run in verification.runs])
    passes = "forward and backward" if verification.trained else "forward"
    failed = [run.first_failure for run in verification.runs if run.first_failure is not None]
    if not failed:
        partly = " in the forward pass" if any(without_backward(report, run) for run in verification.runs) else ""
        unjudged = any(run.unjudged for run in verification.runs)
        came = "inf or NaN, in float32 too" if unjudged else f"{_THROUGH}{partly}"
        return f"Ran {passes} in float16 with {runs}: {came}."
    first = failed[0].activation
    name = f"{first.module}.{first.op}" if first.module else first.op
    where = f"the cast of {name}" if first.phase == "load" else f"{first.op} in {first.module or 'the model itself'}"
    return f"Ran {passes} in float16 with {runs}: {where} fails first."


def _sound(report: Report) -> str:
    if not report.tensors:
        return "Nothing is known about its weights."
    return f"Every measured weight {'fits float16' if report.target_dtype == 'float16' else 'is finite'}."
