"""Much in few words: statements about tensors that say the same thing become one entry, and the worst come first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gemma_doctor.choices import SEVERITIES, Severity
from gemma_doctor.records import Finding, Scalar
from gemma_doctor.reports.names import ranges

__all__ = ["Entry", "Statement", "digest", "folded", "groups"]

_LAYER = re.compile(r"\b([Ll]ayer) ([0-9]{1,6})\b")


@dataclass(frozen=True, slots=True)
class Statement:
    """What is said of one thing.

    Attributes:
        subject: The tensor (or file) concerned; None where it is the checkpoint.
        message: What is said.
        evidence: Its numbers; the first is the one it is about.
    """

    subject: str | None
    message: str
    evidence: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Entry:
    """Statements that say the same.

    Attributes:
        subjects: The tensors (or files) concerned; empty where it is the checkpoint.
        message: What is said of them.
        count: How many statements they are.
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
    """The findings of one rule and severity as entries, the worst first."""
    return folded(Statement(found.tensor or found.file, found.message, found.evidence) for found in findings)


def folded(statements: Iterable[Statement]) -> list[Entry]:
    """Statements as entries, the worst first.

    They say the same if their messages differ at most in the number of their own layer. Law: the counts add up to the
    number of statements.
    """
    bundles: dict[str, list[Statement]] = {}
    for statement in statements:
        bundles.setdefault(_message(statement, "#"), []).append(statement)
    ordered = sorted(bundles.values(), key=lambda bundle: max(map(_gravity, bundle)), reverse=True)
    return [_entry(bundle) for bundle in ordered]


def _gravity(statement: Statement) -> float:
    """How bad it is beside others of its kind: the first number of its evidence."""
    numbers = (abs(value) for value in statement.evidence.values() if isinstance(value, (int, float)))
    return next(numbers, 0.0)


def _entry(bundle: list[Statement]) -> Entry:
    subjects = tuple(dict.fromkeys(one.subject for one in bundle if one.subject))
    return Entry(subjects, _common_message(bundle), len(bundle))


def _common_message(bundle: list[Statement]) -> str:
    """The message of all; the numbers of their own layers as a set of ranges."""
    own = [match[2] for one in bundle for match in _LAYER.finditer(one.message) if _is_own(match, one)]
    return _message(bundle[0], ranges(own)) if len(set(own)) > 1 else bundle[0].message


def _message(statement: Statement, layer: str) -> str:
    """The message with ``layer`` in place of the number of its own layer."""
    return _LAYER.sub(lambda match: f"{match[1]} {layer}" if _is_own(match, statement) else match[0], statement.message)


def _is_own(match: re.Match[str], statement: Statement) -> bool:
    return match[2] in (statement.subject or "").split(".")
