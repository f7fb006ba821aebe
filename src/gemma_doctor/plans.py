"""The nouns of a repair: ``Plan``, an ordered list of edits with their reasons, and ``Applied``, what became of it.

Pure data; a plan is JSON both ways. An edit says what happens to one tensor (or to the config), never why a model needs
it; ``apply`` carries edits out and knows nothing of models. Edits to one tensor compose in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from gemma_doctor.choices import Severity
from gemma_doctor.records import Exactness, Scalar

__all__ = [
    "PLAN_VERSION",
    "Add",
    "Applied",
    "Cast",
    "Clamp",
    "Drop",
    "Edit",
    "FileMark",
    "Fingerprint",
    "Left",
    "Leftover",
    "Plan",
    "Reason",
    "Rename",
    "Scale",
    "ScaleGain",
    "SetConfig",
    "SetMetadata",
    "WrittenFile",
    "ZeroNonfinite",
]

PLAN_VERSION = 1
"""Version of the plan's JSON layout."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an edit is in the plan.

    Attributes:
        rule: Id of the rule whose finding it mends, such as ``"GD104"``.
        message: What, in one sentence with its numbers; it states the bound on any change of the function.
        evidence: The numbers.
    """

    rule: str
    message: str
    evidence: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edit:
    """What every edit carries.

    Attributes:
        pass_name: The pass that wants it.
        exactness: ``exact``, ``eps``, ``rounded`` or ``lossy``.
        reason: Why.
    """

    pass_name: str
    exactness: Exactness
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale(_Edit):
    """Multiply a floating tensor by 2**exponent, in its dtype (exact but for overflow and lost subnormal bits)."""

    tensor: str
    exponent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleGain(_Edit):
    """Multiply a gain that is stored as what is added to one: w becomes 2**exponent * (1 + w) - 1.

    The result is stored as float32, rounded once: near -1, where small gains lie, a narrower dtype would ruin it.
    """

    tensor: str
    exponent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast(_Edit):
    """Store a tensor in another safetensors dtype, rounded to nearest, ties to even."""

    tensor: str
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp(_Edit):
    """Replace magnitudes above ``limit`` by ``limit``, sign kept; inf too, NaN stays NaN."""

    tensor: str
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroNonfinite(_Edit):
    """Replace NaN and inf by zero."""

    tensor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(_Edit):
    """Leave a tensor out."""

    tensor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(_Edit):
    """Add a tensor of zeros, in the file that holds ``beside``."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    beside: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename(_Edit):
    """Give a tensor another name."""

    tensor: str
    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetConfig(_Edit):
    """Set a value of ``config.json``, at a path of keys that exists or whose parent exists."""

    path: tuple[str, ...]
    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMetadata(_Edit):
    """Store a number of a GGUF file's metadata as UINT32, in the four bytes that it takes already."""

    file: str
    key: str
    number: int


Edit: TypeAlias = Scale | ScaleGain | Cast | Clamp | ZeroNonfinite | Drop | Add | Rename | SetConfig | SetMetadata
"""The closed union of edits."""


@dataclass(frozen=True, slots=True)
class FileMark:
    """What tells a file from a changed one without reading all of it.

    Attributes:
        name: Path relative to the checkpoint's root.
        size: Bytes.
        header_sha256: SHA-256 of its header: length word and JSON, or all that precedes a GGUF file's first tensor.
    """

    name: str
    size: int
    header_sha256: str


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a plan was made for.

    Attributes:
        files: Every tensor file.
        tensors: SHA-256 of the bytes of each tensor that an edit reads. Others may change: they are copied as they are.
        config: SHA-256 of what config.json says, however it is laid out; None where there is none.
    """

    files: tuple[FileMark, ...]
    tensors: Mapping[str, str]
    config: str | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """A finding that the plan does not mend, and why.

    Attributes:
        rule: The finding's rule.
        severity: The finding's severity.
        tensor: Its tensor; None where it is the checkpoint, or several notes.
        reason: Why it stays: no pass mends it, the pass is lossy and ``--unsafe`` was not given, the loader needs the
            tensors, the bound on the change is not small …
    """

    rule: str
    severity: Severity
    tensor: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done to a checkpoint.

    Attributes:
        version: Version of gemma-doctor that made it.
        source: The SOURCE it was made for, as given.
        fingerprint: What that source was.
        edits: In the order in which they are carried out.
        left: The findings that stay, and why.
    """

    version: str
    source: str
    fingerprint: Fingerprint
    edits: tuple[Edit, ...]
    left: tuple[Left, ...] = ()


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """One file of the output.

    Attributes:
        name: Path relative to the output.
        size: Bytes.
        sha256: SHA-256 of its bytes as they were read back, in hexadecimal.
        linked: Whether it is a hard link to the source's file.
    """

    name: str
    size: int
    sha256: str
    linked: bool


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a run that was killed had left.

    Attributes:
        name: The folder's name.
        nbytes: Bytes of its files.
        restored: The output that it was the only whole copy of, and has become again; None where it was deleted.
    """

    name: str
    nbytes: int
    restored: str | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """What has been done.

    Attributes:
        output: The folder, symbolic links resolved.
        files: Its files but ``gemma-doctor.json``, by name.
        bytes_written: Bytes written, ``gemma-doctor.json`` included.
        bytes_linked: Bytes of hard-linked files.
        seconds: How long it took.
        removed_leftovers: What killed runs had left beside it, and is gone or restored now.
        remarks: What was left out, or done in another way than asked.
    """

    output: Path
    files: tuple[WrittenFile, ...]
    bytes_written: int
    bytes_linked: int
    seconds: float
    removed_leftovers: tuple[Leftover, ...]
    remarks: tuple[str, ...]
