"""SARIF 2.1.0, as GitHub's code scanning takes it.

The format: https://docs.oasis-open.org/sarif/sarif/v2.1.0/ (sections are cited as §). GitHub's limits:
https://docs.github.com/en/code-security/code-scanning/troubleshooting-sarif-uploads/results-exceed-limit: it shows at
most 5,000 results of a run and 100 locations of a result, and refuses files above 10 MB (gzip).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from gemma_doctor.choices import SEVERITIES, Severity
from gemma_doctor.records import Finding, Report, Scalar
from gemma_doctor.reports.figures import strict
from gemma_doctor.reports.guide import Anchor, RulePage
from gemma_doctor.reports.names import clipped, elide, fold, safe_text
from gemma_doctor.reports.wording import counted, unmeasured

__all__ = ["to_sarif"]

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
MOST_SINGLE = 1000
"""Findings from which on a result stands for a family of tensors: nobody reads thousands of alerts one by one."""

_MOST_RESULTS = 5000  # GitHub shows no more
_MOST_LOCATIONS = 20  # of a result; GitHub shows 100, and a family's first members say where it is
_REASONS = 100  # notifications on what was not measured
_LINK = re.compile(r"\]\(")
_PLACEHOLDER = re.compile(r"\{([0-9]+)\}")


@dataclass(frozen=True, slots=True)
class _Family:
    """Findings of one rule that become one result.

    Attributes:
        key: What they are about, the same whichever members are found.
        shown: The same as people read it; None where it is no tensor.
        findings: All of them, in their order.
    """

    key: str
    shown: str | None
    findings: Sequence[Finding]


def to_sarif(report: Report, anchor: Anchor, rules: Sequence[RulePage] = ()) -> str:
    """The report as a SARIF log that ends in a newline.

    Args:
        report: What to write. Findings that are set aside are not results: GitHub would show them as open alerts.
        anchor: The text file that the results point at.
        rules: The rules that were applied; those with findings are described even if they are not among them.
    """
    described = list(_rules(report, rules))
    index = {rule["id"]: number for number, rule in enumerate(described)}
    families = sorted(_families(report.findings), key=lambda family: SEVERITIES.index(family.findings[0].severity))
    results = [_result(family, index, anchor) for family in families[:_MOST_RESULTS]]
    run = {
        "tool": {
            "driver": {
                "name": "gemma-doctor",
                "version": report.version,
                "rules": described,
            }
        },
        "invocations": [
            {
                "executionSuccessful": report.complete,
                "toolExecutionNotifications": list(_notifications(report, len(families))),
            }
        ],
        "results": _numbered(results),
        "columnKind": "unicodeCodePoints",
        "properties": {
            "source": clipped(report.source.uri),
            "architecture": clipped(report.source.architecture),
            "targetDtype": report.target_dtype,
            "loader": report.loader,
            "coverage": {"expected": report.coverage.expected, "measured": report.coverage.measured},
            "suppressed": len(report.suppressed),
        },
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, allow_nan=False) + "\n"


def _rules(report: Report, rules: Sequence[RulePage]) -> Iterator[dict[str, Any]]:
    """The applied rules, then those that only findings name."""
    for rule in rules:
        yield {
            "id": rule.id,
            "name": rule.name,
            "shortDescription": {"text": rule.summary or rule.name},
            "fullDescription": {"text": rule.summary or rule.name},
            "help": {"text": rule.page or rule.name, "markdown": rule.page or rule.name},
            "defaultConfiguration": {"level": rule.severity},
            "properties": {"tags": ["float16", "checkpoint"], "problem.severity": _problem(rule.severity)},
        }
    known = {rule.id for rule in rules}
    others: dict[str, Finding] = {}
    for finding in report.findings:
        if finding.rule not in known:
            others.setdefault(finding.rule, finding)
    for finding in others.values():
        yield {
            "id": finding.rule,
            "name": finding.name,
            "shortDescription": {"text": clipped(finding.name) or finding.rule},
            "defaultConfiguration": {"level": finding.severity},
        }


def _problem(severity: Severity) -> str:
    """GitHub's word for a severity in a rule's properties."""
    return "recommendation" if severity == "note" else severity


def _families(findings: Sequence[Finding]) -> Iterator[_Family]:
    """One result for each finding, or for each family of tensors where there are too many."""
    if len(findings) < MOST_SINGLE:
        yield from (_Family(finding.tensor or finding.file or "", finding.tensor, [finding]) for finding in findings)
        return
    groups: dict[tuple[str, Severity], dict[str, list[Finding]]] = {}
    for finding in findings:
        group = groups.setdefault((finding.rule, finding.severity), {})
        group.setdefault(finding.tensor or "", []).append(finding)
    for group in groups.values():
        for finding in group.pop("", ()):
            yield _Family(finding.file or "", None, [finding])
        for pattern, members in fold(group):
            key = re.sub(r"\{[0-9,.]+\}", "*", pattern) if len(members) > 1 else pattern
            yield _Family(key, pattern, [finding for name in members for finding in group[name]])


def _result(family: _Family, index: Mapping[str, int], anchor: Anchor) -> dict[str, Any]:
    first = family.findings[0]
    return {
        "ruleId": first.rule,
        "ruleIndex": index[first.rule],
        "level": first.severity,
        "message": {"text": _message(family)},
        "locations": [_location(finding, anchor) for finding in family.findings[:_MOST_LOCATIONS]],
        "partialFingerprints": {"primaryLocationLineHash": _fingerprint(first.rule, family.key)},
        "properties": {
            "tensor": None if family.shown is None else elide(safe_text(family.shown)),
            "file": None if first.file is None else elide(safe_text(first.file)),
            "findings": len(family.findings),
            "evidence": {clipped(key): _value(value) for key, value in first.evidence.items()},
            "repair": first.repair.pass_name if first.repair else None,
        },
    }


def _value(value: Scalar) -> Scalar:
    """A value of the evidence as JSON can hold it."""
    return clipped(value) if isinstance(value, str) else strict(value)


def _message(family: _Family) -> str:
    """A plain text message; what would be a link or a placeholder in it is none (§3.11.5, §3.11.6)."""
    first, number = family.findings[0], len(family.findings)
    if number > 1:
        many = f"{elide(safe_text(family.shown or ''))} ({counted(number, 'finding')}). The first: "
    else:
        many = f"{elide(safe_text(family.shown))}: " if family.shown else ""
    text = _PLACEHOLDER.sub(r"{{\1}}", f"{many}{clipped(first.message)}")
    return re.sub(r"[\[\]\\]", r"\\\g<0>", text) if _LINK.search(text) else text


def _location(finding: Finding, anchor: Anchor) -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": _artifact(anchor.path),
            "region": {"startLine": anchor.line(finding.tensor)},
        }
    }
    if finding.tensor:
        location["logicalLocations"] = [{"fullyQualifiedName": elide(safe_text(finding.tensor)), "kind": "resource"}]
    return location


def _artifact(path: str) -> dict[str, str]:
    """A file as a URI: relative to the repository where it lies within (§3.4.3)."""
    if PurePosixPath(path).is_absolute():
        return {"uri": f"file://{quote(path, errors='replace')}"}
    return {"uri": quote(path, errors="replace"), "uriBaseId": "%SRCROOT%"}


def _fingerprint(rule: str, key: str) -> str:
    """What tells GitHub that an alert is the one of the last run (§3.27.17): the rule and what it is about."""
    return hashlib.sha256(f"{rule}\0{key}".encode("utf-8", "backslashreplace")).hexdigest()[:32]


def _numbered(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results, those with one fingerprint told apart by their order, as CodeQL does."""
    seen: dict[str, int] = {}
    held = list(results)
    for result in held:
        fingerprints = result["partialFingerprints"]
        fingerprint = fingerprints["primaryLocationLineHash"]
        seen[fingerprint] = seen.get(fingerprint, 0) + 1
        fingerprints["primaryLocationLineHash"] = f"{fingerprint}:{seen[fingerprint]}"
    return held


def _notifications(report: Report, results: int) -> Iterator[dict[str, Any]]:
    """What the user must know beside the results."""
    for number, reason, tensors in islice(unmeasured(report), _REASONS):
        said = f"{number}, {reason}; the first is {elide(safe_text(tensors[0]))}"
        yield {"level": "error", "message": {"text": clipped(said)}}
    if results > _MOST_RESULTS:
        text = f"{results - _MOST_RESULTS:,} results are left out: GitHub shows {_MOST_RESULTS:,}"
        yield {"level": "warning", "message": {"text": text}}
