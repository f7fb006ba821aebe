"""Reports for machines: strict JSON that ``report.schema.json`` describes, written and read back.

Law: ``to_dict(from_json(to_json(report))) == to_dict(report)`` for every report, whatever its numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from gemma_doctor.records import SCHEMA_VERSION, Coverage, Finding, Proof, Report, Source, Suppressed
from gemma_doctor.reports.figures import figures, rows, strict
from gemma_doctor.reports.machine_verification import activation_dict, verification_dict
from gemma_doctor.reports.saved import read_report
from gemma_doctor.tensors import MeasuredTensor

__all__ = ["from_json", "to_dict", "to_json"]


def to_json(report: Report) -> str:
    """The report as a JSON document that ends in a newline.

    Each finding, tensor and activation has a line of its own, so that ``grep`` and ``diff`` work on it. The text is
    ASCII, and strict: it holds no NaN and no Infinity.
    """
    return "".join(_lines(to_dict(report)))


def from_json(text: str | bytes, name: str = "report") -> Report:
    """The report that a JSON document holds.

    Offsets of the tensors in their files come back too; sums of squares come back as the squares of the written norms.

    Args:
        text: The document.
        name: What messages call it.

    Raises:
        UsageError: It is no report, is damaged, contradicts itself, or has another schema version.
    """
    return read_report(text, name, to_dict)


def to_dict(report: Report) -> dict[str, Any]:
    """The report as JSON objects, lists and scalars, in the layout of ``report.schema.json``.

    A float that JSON cannot hold (NaN, inf) becomes None.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "gemma-doctor", "version": report.version},
        "source": _source(report.source),
        "target_dtype": report.target_dtype,
        "loader": report.loader,
        "complete": report.complete,
        "coverage": _coverage(report.coverage),
        "summary": _summary(report),
        "remarks": list(report.remarks),
        "proof": None if report.proof is None else _proof(report.proof),
        "findings": [_finding(finding) for finding in report.findings],
        "suppressed": [_suppressed(item) for item in report.suppressed],
        "tensors": [_tensor(tensor) for tensor in report.tensors],
        "verification": None if report.verification is None else verification_dict(report.verification),
        "activations": [activation_dict(activation) for activation in report.activations],
    }


def _source(source: Source) -> dict[str, Any]:
    return {
        "uri": source.uri,
        "revision": source.revision,
        "format": source.format,
        "architecture": source.architecture,
        "files": [{"name": file.name, "size": file.size, "tensors": file.tensors} for file in source.files],
    }


def _coverage(coverage: Coverage) -> dict[str, Any]:
    skipped = [{"tensor": item.tensor, "reason": item.reason} for item in coverage.skipped]
    return {"expected": coverage.expected, "measured": coverage.measured, "skipped": skipped}


def _summary(report: Report) -> dict[str, Any]:
    return {
        "tensors": len(report.tensors),
        "parameters": sum(tensor.info.numel for tensor in report.tensors),
        "bytes": sum(tensor.info.nbytes for tensor in report.tensors),
        "errors": report.count("error"),
        "warnings": report.count("warning"),
        "notes": report.count("note"),
        "suppressed": len(report.suppressed),
        "seconds": strict(report.seconds),
    }


def _proof(proof: Proof) -> dict[str, Any]:
    return {
        "certified": proof.certified,
        "values": proof.values,
        "safe": proof.safe,
        "scores": proof.scores,
        "scores_safe": proof.scores_safe,
        "assumptions": list(proof.assumptions),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    repair = finding.repair
    return {
        "rule": finding.rule,
        "name": finding.name,
        "severity": finding.severity,
        "tensor": finding.tensor,
        "file": finding.file,
        "message": finding.message,
        "evidence": strict(finding.evidence),
        "repair": None if repair is None else {"pass": repair.pass_name, "exactness": repair.exactness},
    }


def _suppressed(item: Suppressed) -> dict[str, Any]:
    return {"by": item.by, "reason": item.reason, "origin": item.origin, "finding": _finding(item.finding)}


def _tensor(tensor: MeasuredTensor) -> dict[str, Any]:
    info, stats = tensor.info, tensor.stats
    return {
        "name": info.name,
        "file": info.file,
        "offset": info.start,
        "dtype": info.dtype,
        "shape": list(info.shape),
        "bytes": info.nbytes,
        "role": tensor.role,
        **figures(stats),
        **rows(stats),
        "limit": strict(tensor.limit),
        "input_budget": strict(tensor.input_budget),
    }


def _lines(document: dict[str, Any]) -> Iterator[str]:
    opening = "{"
    for key, value in document.items():
        yield f"{opening}\n  {_dump(key)}: "
        yield from _value_lines(value)
        opening = ","
    yield "\n}\n"


def _value_lines(value: Any) -> Iterator[str]:  # noqa: ANN401  # JSON values
    """A list of objects with a line for each; anything else on one line."""
    if not isinstance(value, list) or not value:
        yield _dump(value)
        return
    opening = "["
    for item in value:
        yield f"{opening}\n    {_dump(item)}"
        opening = ","
    yield "\n  ]"


def _dump(value: Any) -> str:  # noqa: ANN401  # JSON values
    return json.dumps(value, allow_nan=False)
