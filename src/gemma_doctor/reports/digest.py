"""Findings in few words: those of one rule that say the same thing become one entry, and the worst come first."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gemma_doctor.records import SEVERITIES, Finding, Severity
from gemma_doctor.reports.names import ranges

__all__ = ["Entry", "digest", "groups"]

_LAYER = re.compile(r"\blayer ([0-9]{1,6})\b")


@dataclass(frozen=True, slots=True)
class Entry:
    """Findings that say the same.

    Attributes:
        subjects: The tensors (or files) concerned; empty where it is the checkpoint.
        message: What is said of them.
        count: How many findings they are.
    """

    subjects: tuple[str, ...]
    message: str
    count: int


def groups(findings: Iterable[Finding]) -> list[list[Finding]]:
    """The findings by rule and severity, the gravest first; otherwise in their order."""
    together: dict[tuple[str, Severity], list[Finding]] = {}
    for finding in findings:
        together.setdefault((finding.rule, finding.severity), []).append(finding)
    return sorted(together.values(), key=lambda group: SEVERITIES.index(group[0].severity))


def digest(findings: Iterable[Finding]) -> list[Entry]:
    """The findings of one rule and severity as entries, the worst first.

    Findings say the same if their messages differ at most in the number of their own layer. Law: the counts add up to
    the number of findings.
    """
    bundles: dict[str, list[Finding]] = {}
    for finding in findings:
        bundles.setdefault(_message(finding, "#"), []).append(finding)
    ordered = sorted(bundles.values(), key=lambda bundle: max(map(_gravity, bundle)), reverse=True)
    return [_entry(bundle) for bundle in ordered]


def _gravity(finding: Finding) -> float:
    """How bad it is beside others of its rule: the first number of its evidence, which is the one it is about."""
    numbers = (abs(value) for value in finding.evidence.values() if isinstance(value, (int, float)))
    return next(numbers, 0.0)


def _entry(bundle: list[Finding]) -> Entry:
    subjects = tuple(dict.fromkeys(subject for finding in bundle if (subject := finding.tensor or finding.file)))
    return Entry(subjects, _common_message(bundle), len(bundle))


def _common_message(bundle: list[Finding]) -> str:
    """The message of all; the numbers of their own layers as a set of ranges."""
    own = [match[1] for finding in bundle for match in _LAYER.finditer(finding.message) if _is_own(match, finding)]
    return _message(bundle[0], ranges(own)) if len(set(own)) > 1 else bundle[0].message


def _message(finding: Finding, layer: str) -> str:
    """The finding's message with ``layer`` in place of the number of its own layer."""
    return _LAYER.sub(lambda match: f"layer {layer}" if _is_own(match, finding) else match[0], finding.message)


def _is_own(match: re.Match[str], finding: Finding) -> bool:
    return match[1] in (finding.tensor or "").split(".")
