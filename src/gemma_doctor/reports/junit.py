"""JUnit XML, as GitLab, Jenkins and the like read it: a test case for each rule, and one for the coverage.

There is no official schema; this keeps to the one of Jenkins' xUnit plugin (junit-10.xsd), as pytest does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

from gemma_doctor.choices import FailOn, Severity, failing
from gemma_doctor.records import Finding, Report
from gemma_doctor.reports.digest import Entry, digest, groups
from gemma_doctor.reports.guide import RulePage
from gemma_doctor.reports.names import clipped, elide, fold, safe_text
from gemma_doctor.reports.wording import counted, measured, state, verdict

__all__ = ["to_junit"]

_SUITE = "gemma-doctor"
_ENTRIES = 50  # of a rule
_NAMES = 20  # of an entry


def to_junit(report: Report, rules: Sequence[RulePage] = (), fail_on: FailOn = "error") -> str:
    """The report as an XML document that ends in a newline.

    A rule's test case fails where it has findings that make the scan fail; its other findings are its output. Where
    something was left unmeasured, the case of the coverage is an error, and rules without findings are skipped.

    Args:
        report: What to write.
        rules: The rules that were applied; those with findings have a case even if they are not among them.
        fail_on: Least severity of a finding that counts as failure.
    """
    grave = failing(fail_on)
    names = {rule.id: rule.name for rule in rules} | {found.rule: found.name for found in report.findings}
    found = {rule: [finding for finding in report.findings if finding.rule == rule] for rule in names}
    cases = [_coverage(report), *(_case(rule, names[rule], found[rule], grave, report) for rule in names)]
    suite = ET.Element(
        "testsuite",
        {
            "name": _SUITE,
            "tests": str(len(cases)),
            "failures": str(_with(cases, "failure")),
            "errors": str(_with(cases, "error")),
            "skipped": str(_with(cases, "skipped")),
            "time": _seconds(report.seconds),
        },
    )
    suite.append(_properties(report))
    suite.extend(cases)
    _text(suite, "system-out", clipped(verdict(report)))
    suites = ET.Element("testsuites", {"name": _SUITE})
    suites.append(suite)
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _with(cases: Sequence[ET.Element], tag: str) -> int:
    return sum(case.find(tag) is not None for case in cases)


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}"


def _properties(report: Report) -> ET.Element:
    properties = ET.Element("properties")
    known = {
        "source": report.source.uri,
        "architecture": report.source.architecture,
        "target-dtype": report.target_dtype,
        "loader": report.loader,
        "version": report.version,
    }
    for name, value in known.items():
        ET.SubElement(properties, "property", {"name": name, "value": clipped(value)})
    return properties


def _coverage(report: Report) -> ET.Element:
    case = ET.Element("testcase", {"classname": f"{_SUITE}.scan", "name": "coverage", "time": "0"})
    if not report.complete:
        covered = report.coverage
        problem = ET.SubElement(
            case,
            "error",
            {"type": "incomplete", "message": state(report)},
        )
        skipped = [f"{elide(safe_text(item.tensor))}: {clipped(item.reason)}" for item in covered.skipped[:_ENTRIES]]
        more = [f"and {len(covered.skipped) - _ENTRIES:,} more"] if len(covered.skipped) > _ENTRIES else []
        problem.text = "\n".join([*skipped, *more])
    _text(case, "system-out", measured(report))
    return case


def _case(rule: str, name: str, findings: Sequence[Finding], grave: Sequence[Severity], report: Report) -> ET.Element:
    names = {"classname": f"{_SUITE}.{clipped(rule, 40)}", "name": clipped(name, 100), "time": "0"}
    case = ET.Element("testcase", names)
    if not findings and not report.complete:
        ET.SubElement(case, "skipped", {"message": "the examination is incomplete"})
    for group in groups(findings):
        severity = group[0].severity
        if severity in grave:
            said = {"type": severity, "message": counted(len(group), "finding")}
            ET.SubElement(case, "failure", said).text = "\n".join(_entries(group))
        else:
            _text(case, "system-out", "\n".join([f"{severity}: {counted(len(group), 'finding')}", *_entries(group)]))
    return case


def _text(parent: ET.Element, tag: str, text: str) -> None:
    ET.SubElement(parent, tag).text = text


def _entries(group: Sequence[Finding]) -> Iterator[str]:
    entries = digest(group)
    for entry in entries[:_ENTRIES]:
        yield from _entry(entry)
    if len(entries) > _ENTRIES:
        yield f"and {counted(sum(entry.count for entry in entries[_ENTRIES:]), 'more finding')}"


def _entry(entry: Entry) -> Iterator[str]:
    families = fold(entry.subjects)
    for pattern, members in families[:_NAMES]:
        many = f" ({len(members):,})" if len(members) > 1 else ""
        yield f"{elide(safe_text(pattern))}{many}"
    if len(families) > _NAMES:
        yield f"and {sum(len(members) for _, members in families[_NAMES:]):,} more"
    yield f"    {clipped(entry.message)}"
