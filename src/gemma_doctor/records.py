"""The nouns: frozen records that flow down the straight line.

``Source`` says what was examined, ``Finding`` what is wrong with it, ``Report`` all of it together. Nothing here reads
a file, and nothing here needs more than the standard library, so every other room may import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal, Protocol, TypeAlias

from gemma_doctor.choices import SEVERITIES, Loader, Severity, TargetDtype
from gemma_doctor.tensors import MeasuredTensor
from gemma_doctor.verifications import Activation, Verification

__all__ = [
    "FAULT_RULES",
    "SCHEMA_VERSION",
    "Coverage",
    "Fault",
    "FileInfo",
    "Finding",
    "Progress",
    "Proof",
    "Repair",
    "Report",
    "Skipped",
    "Source",
    "Suppressed",
]

SCHEMA_VERSION = 1
"""Version of the report's JSON layout."""

Exactness: TypeAlias = Literal["exact", "eps", "rounded", "lossy"]
Scalar: TypeAlias = "str | int | float | bool | None"


class Progress(Protocol):
    """Who wants to know how far a long pass over bytes is. Called from one thread."""

    def start(self, total_bytes: int) -> None:
        """It begins; so many bytes will be passed over."""

    def advance(self, nbytes: int) -> None:
        """So many more bytes are done."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One tensor file of a checkpoint.

    Attributes:
        name: Path relative to the checkpoint's root, with forward slashes.
        size: Bytes on disk.
        metadata: The header's ``__metadata__``, or None where it has none.
        tensors: How many tensors its header lists; 0 where the header cannot be read.
        header: Bytes before the first tensor of a GGUF file; 0 for safetensors, which say so in their first eight.
    """

    name: str
    size: int
    metadata: Mapping[str, str] | None = None
    tensors: int = 0
    header: int = 0


FaultKind: TypeAlias = Literal["unreadable-shard", "index-mismatch", "unsafe-path"]
FAULT_RULES: Mapping[FaultKind, str] = {
    "unreadable-shard": "GD001",
    "index-mismatch": "GD002",
    "unsafe-path": "GD003",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with the files themselves, met while the checkpoint was opened.

    Attributes:
        kind: Name of the rule that reports it.
        file: The file at fault, relative to the checkpoint's root.
        message: One sentence: what, where, against which limit, and the next step.
        tensor: The tensor concerned, where there is one.
        evidence: The numbers behind the message.
    """

    kind: FaultKind
    file: str
    message: str
    tensor: str | None = None
    evidence: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Repair:
    """The pass that mends a finding, and how exactly.

    Attributes:
        pass_name: Name of the pass.
        exactness: ``exact`` (same function, or same bytes), ``eps`` (up to a norm's eps), ``rounded`` (storage
            rounding) or ``lossy`` (another function).
    """

    pass_name: str
    exactness: Exactness


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a rule found.

    Attributes:
        rule: The rule's id, such as ``"GD101"``.
        name: The rule's name, such as ``"nonfinite-weight"``.
        severity: ``error``, ``warning`` or ``note``.
        message: What, where, how much, against which limit.
        tensor: The tensor concerned; None where it is the checkpoint.
        file: The file concerned, relative to the checkpoint's root.
        evidence: The numbers with their threshold; JSON scalars only, never NaN or inf.
        repair: The pass that mends it, or None.
    """

    rule: str
    name: str
    severity: Severity
    message: str
    tensor: str | None = None
    file: str | None = None
    evidence: Mapping[str, Scalar] = field(default_factory=dict)
    repair: Repair | None = None


SuppressedBy: TypeAlias = Literal["per-tensor-ignores", "allow", "baseline"]


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A finding that does not count, and why.

    Attributes:
        finding: What was found.
        by: What set it aside: ``"per-tensor-ignores"``, ``"allow"`` or ``"baseline"``.
        reason: The user's reason; empty where the mechanism asks for none.
        origin: The file that says so, as messages call it; empty where it was said in Python.
    """

    finding: Finding
    by: SuppressedBy
    reason: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A selected tensor that was not measured, and why."""

    tensor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of what was selected has been measured.

    Attributes:
        expected: Tensors that were selected.
        measured: Tensors measured to their last element.
        skipped: The others, each with its reason.
    """

    expected: int
    measured: int
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """What was examined.

    Attributes:
        uri: The SOURCE as it was given.
        revision: Commit of a Hub repository; None for local files.
        format: ``"safetensors"`` or ``"gguf"``; ``"torch"`` for a model in memory.
        architecture: The model family that the config names (``"gemma3n"``, ``"gemma3"``, ``"generic"`` …).
        files: The tensor files.
    """

    uri: str
    revision: str | None
    format: str
    architecture: str
    files: tuple[FileInfo, ...]


@dataclass(frozen=True, slots=True)
class Proof:
    """How much of a float16 run is proved to stay within its limits, whatever the input (GD301's page has the terms).

    Attributes:
        values: Tensors that the run writes, as far as the architecture is declared.
        safe: Those of them whose bound fits.
        assumptions: What the bounds take for granted, a clause each.
        scores: Attention scores that only eager attention writes; they are not among the values.
        scores_safe: Those of them whose bound fits.
    """

    values: int
    safe: int
    assumptions: tuple[str, ...]
    scores: int = 0
    scores_safe: int = 0

    @property
    def certified(self) -> bool:
        """Whether all of them fit: the model cannot overflow in the forward pass, whatever the input."""
        return 0 < self.values == self.safe


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one examination; every renderer draws from it and decides nothing.

    Attributes:
        version: Version of gemma-doctor that made it.
        source: What was examined.
        target_dtype: The dtype the weights were judged for: ``"float16"`` or ``"bfloat16"``.
        loader: The loader that the tensors were judged for.
        coverage: How much was measured.
        findings: What is wrong, gravest rules first, in file order within a rule.
        suppressed: Findings that the user has set aside.
        tensors: Every measured tensor, in file order.
        seconds: Wall-clock time of the examination.
        activations: What a verification measured, in the order of execution; empty for a scan.
        verification: How the model was run and what came of it; None for a scan.
        remarks: What else the user should know, a sentence each: what was not read, and baseline and allow entries
            without a finding.
        proof: What is proved of a run in float16; None where the architecture is not declared, or another dtype, or
            a part of the checkpoint only, was asked for.
    """

    version: str
    source: Source
    target_dtype: TargetDtype
    loader: Loader
    coverage: Coverage
    findings: tuple[Finding, ...]
    tensors: tuple[MeasuredTensor, ...]
    seconds: float
    suppressed: tuple[Suppressed, ...] = ()
    activations: tuple[Activation, ...] = ()
    verification: Verification | None = None
    remarks: tuple[str, ...] = ()
    proof: Proof | None = None

    @property
    def complete(self) -> bool:
        """Whether every selected tensor was measured, and at least one."""
        return 0 < self.coverage.measured == self.coverage.expected

    def count(self, severity: Severity) -> int:
        """Number of findings of one severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def worst(self) -> Severity | None:
        """Gravest severity among the findings; None where there are none."""
        return next((s for s in SEVERITIES if self.count(s)), None)

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict and the findings."""
        # The only step upwards: a notebook asks the record itself, and records know no renderer.
        page = import_module("gemma_doctor.reports.page")
        return str(page.to_fragment(self))
