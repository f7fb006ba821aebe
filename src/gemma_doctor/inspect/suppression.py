"""Which findings the user has set aside, and what those decisions still hold for.

Three ways, in this order: ``per-tensor-ignores`` (a glob of tensor names -> rules), ``allow`` entries (one rule on
one tensor with exactly these bytes, and a reason) and a baseline (what an earlier scan found). A finding that is
set aside is counted and shown, never dropped, and a decision that no longer fits says so:

- an allow entry whose bytes have changed lets its finding count again, with the new hash in the message;
- an allow or baseline entry without its finding becomes a remark.

Everything here is a pure function; the hash of a tensor's bytes comes from the caller, who reads the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache

from gemma_doctor.choices import Severity
from gemma_doctor.records import Finding, Suppressed

__all__ = ["Allow", "Baseline", "Ignore", "Known", "SetAside", "Suppressions", "set_aside"]

_NAMED = 3  # entries that a remark names before it only counts


@dataclass(frozen=True, slots=True)
class Ignore:
    """Rules that do not count on the tensors of a glob.

    Attributes:
        tensors: Glob over whole tensor names, case-sensitive (``fnmatch``: ``*`` also crosses dots).
        rules: Ids of rules.
        origin: The file that says so, as messages call it.
    """

    tensors: str
    rules: tuple[str, ...]
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Allow:
    """A finding that someone has looked at and accepts, for exactly these bytes.

    Attributes:
        rule: Id of the rule.
        tensor: Name of the tensor.
        sha256: SHA-256 of the tensor's bytes, 64 lower-case hexadecimal digits.
        reason: Why it is accepted; never empty.
        origin: The file that says so, as messages call it.
    """

    rule: str
    tensor: str
    sha256: str
    reason: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What identifies a finding from one scan to the next.

    The severity belongs to it: a note that has become an error is a new finding.
    """

    rule: str
    severity: Severity
    tensor: str | None
    file: str | None

    @classmethod
    def of(cls, finding: Finding) -> Known:
        """The identity of ``finding``."""
        return cls(finding.rule, finding.severity, finding.tensor, finding.file)


@dataclass(frozen=True, slots=True)
class Baseline:
    """What an earlier scan found: a multiset, so that a second fault of the same kind is new.

    Attributes:
        entries: One for each finding of that scan.
        origin: The file, as messages call it.
    """

    entries: tuple[Known, ...] = ()
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Suppressions:
    """Everything that the user has set aside."""

    per_tensor_ignores: tuple[Ignore, ...] = ()
    allow: tuple[Allow, ...] = ()
    baseline: Baseline = Baseline()


@dataclass(frozen=True, slots=True)
class SetAside:
    """The findings of a scan, parted.

    Attributes:
        kept: Those that count, in their order.
        suppressed: Those that do not, each with what set it aside, in their order.
        remarks: Entries that no longer have a finding, a sentence each kind.
    """

    kept: tuple[Finding, ...]
    suppressed: tuple[Suppressed, ...]
    remarks: tuple[str, ...] = ()


def _always(_rule: str, _tensor: str | None) -> bool:
    return True


def set_aside(
    findings: Iterable[Finding],
    suppressions: Suppressions,
    content_hash: Callable[[str], str],
    judged: Callable[[str, str | None], bool] = _always,
) -> SetAside:
    """Part the findings into those that count and those that the user has set aside.

    Law: every finding comes out exactly once, and those that count keep their order; only a finding whose allow
    entry has expired is altered (its message and evidence say so).

    Args:
        findings: What the rules found.
        suppressions: What the user has set aside.
        content_hash: SHA-256 of a tensor's bytes, in lower-case hexadecimal; called only for a tensor on which a
            rule has both a finding and an allow entry.
        judged: Whether this scan could have found a rule on a tensor at all (it was selected). Entries that it
            could not are not said to be out of date.

    Returns:
        The findings that count, the others, and remarks on entries without a finding.
    """
    findings = tuple(findings)
    unspent = Counter(suppressions.baseline.entries)
    hashed = cache(content_hash)
    kept: list[Finding] = []
    suppressed: list[Suppressed] = []
    for finding in findings:
        outcome = _ignored(finding, suppressions.per_tensor_ignores) or _allowed(finding, suppressions.allow, hashed)
        if isinstance(outcome, Finding):
            outcome = _known(outcome, unspent, suppressions.baseline.origin)
        if isinstance(outcome, Finding):
            kept.append(outcome)
        else:
            suppressed.append(outcome)
    return SetAside(tuple(kept), tuple(suppressed), _remarks(findings, suppressions, judged))


def _ignored(finding: Finding, ignores: Iterable[Ignore]) -> Suppressed | None:
    """The finding as set aside by the first glob that covers it."""
    if finding.tensor is None:
        return None
    for ignore in ignores:
        if finding.rule in ignore.rules and fnmatchcase(finding.tensor, ignore.tensors):
            return Suppressed(finding, "per-tensor-ignores", origin=ignore.origin)
    return None


def _allowed(finding: Finding, allow: Iterable[Allow], hashed: Callable[[str], str]) -> Suppressed | Finding:
    """The finding as allowed; itself where nobody allows it; itself saying so where every entry has expired."""
    entries = [entry for entry in allow if (entry.rule, entry.tensor) == (finding.rule, finding.tensor)]
    if not entries:
        return finding
    sha256 = hashed(entries[0].tensor)
    for entry in entries:
        if entry.sha256 == sha256:
            return Suppressed(finding, "allow", entry.reason, entry.origin)
    return _expired(finding, entries[0], sha256)


def _expired(finding: Finding, entry: Allow, sha256: str) -> Finding:
    message = (
        f"{finding.message} An allow entry{_in(entry.origin)} accepted this for other bytes (sha256 "
        f"{entry.sha256[:12]}...): look again; to accept these bytes, set its sha256 to {sha256}."
    )
    return replace(finding, message=message, evidence={**finding.evidence, "allowed": entry.sha256, "sha256": sha256})


def _known(finding: Finding, unspent: Counter[Known], origin: str) -> Suppressed | Finding:
    """The finding as set aside by one entry of the baseline, which is then spent."""
    identity = Known.of(finding)
    if not unspent[identity]:
        return finding
    unspent[identity] -= 1
    return Suppressed(finding, "baseline", origin=origin)


def _remarks(
    findings: tuple[Finding, ...], suppressions: Suppressions, judged: Callable[[str, str | None], bool]
) -> tuple[str, ...]:
    found = {(finding.rule, finding.tensor) for finding in findings}
    idle = [entry for entry in suppressions.allow if (entry.rule, entry.tensor) not in found]
    gone = Counter(suppressions.baseline.entries) - Counter(map(Known.of, findings))
    return (
        *_idle_remark([entry for entry in idle if judged(entry.rule, entry.tensor)]),
        *_gone_remark([entry for entry in gone.elements() if judged(entry.rule, entry.tensor)], suppressions.baseline),
    )


def _in(origin: str) -> str:
    return f" in {origin}" if origin else ""


def _idle_remark(idle: list[Allow]) -> list[str]:
    if not idle:
        return []
    names = _listed([f"{allow.rule} {allow.tensor}" for allow in idle])
    return [f"{_entries(len(idle), 'allow')}{_in(idle[0].origin)} without a finding: {names}; remove what is mended"]


def _gone_remark(gone: list[Known], baseline: Baseline) -> list[str]:
    if not gone:
        return []
    names = _listed([f"{entry.rule} {entry.tensor or entry.file or 'checkpoint'}" for entry in gone])
    which = f"{_entries(len(gone), 'baseline')}{_in(baseline.origin)}"
    return [f"{which} no longer found: {names}; renew the file with --write-baseline"]


def _entries(count: int, kind: str) -> str:
    return f"{count} {kind} {'entry' if count == 1 else 'entries'}"


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
