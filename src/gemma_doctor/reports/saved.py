"""Reading a saved report back, strictly: whatever the document says twice must agree.

The records are built from the independent values only; the report is then written again, and any difference from
the document (a wrong sum, an unknown key, a count that does not fit its list) is an error that names its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from gemma_doctor.choices import LOADERS, SEVERITIES, TARGET_DTYPES
from gemma_doctor.errors import UsageError
from gemma_doctor.nodes import Node, parse_json
from gemma_doctor.records import (
    SCHEMA_VERSION,
    Coverage,
    Exactness,
    FileInfo,
    Finding,
    Proof,
    Repair,
    Report,
    Skipped,
    Source,
    Suppressed,
    SuppressedBy,
)
from gemma_doctor.reports.figures import read_figures, read_rows
from gemma_doctor.reports.saved_verification import read_activation, read_scalar, read_shape, read_verification
from gemma_doctor.tensors import MeasuredTensor, Role, TensorInfo

__all__ = ["read_report"]


def read_report(text: str | bytes, name: str, write: Callable[[Report], dict[str, Any]]) -> Report:
    """The report that ``text`` holds.

    Args:
        text: A JSON document.
        name: What messages call it.
        write: Makes the document of a report; what it makes of the result must equal ``text``'s document.

    Raises:
        UsageError: The document is no report of this schema version, or contradicts itself.
    """

    def error(message: str) -> UsageError:
        return UsageError(f"{name} is not a report that can be read: {message}")

    document = parse_json(text, error)
    _check_version(document)
    report = _report(document)
    try:
        again = write(report)
    except OverflowError as problem:  # an integer that no float64 can hold, where a quotient is written
        raise error(f"a number leaves float64's range: {problem}") from problem
    _check_same(document, again)
    return report


def _check_version(document: Node) -> None:
    version = document.member("schema_version").count()
    if version != SCHEMA_VERSION:
        tool = document.member("tool").member("version").text()
        document.refuse(f"schema version {version} (of gemma-doctor {tool}); this one reads version {SCHEMA_VERSION}")


def _check_same(node: Node, again: object) -> None:
    """Refuse the first place where the document differs from the same report written again."""
    if isinstance(again, Mapping):
        members = node.table(again)
        for key, value in again.items():
            _check_same(node.member(key) if key not in members else members[key], value)
    elif isinstance(again, list):
        items = node.items()
        if len(items) != len(again):
            node.refuse(f"{len(items)} items where the rest of the report implies {len(again)}")
        for item, value in zip(items, again, strict=True):
            _check_same(item, value)
    elif node.value != again or isinstance(node.value, bool) is not isinstance(again, bool):
        node.expected(f"{again!r} (from the rest of the report)")


def _report(node: Node) -> Report:
    return Report(
        version=node.member("tool").member("version").text(),
        source=_source(node.member("source")),
        target_dtype=node.member("target_dtype").choice(TARGET_DTYPES),
        loader=node.member("loader").choice(LOADERS),
        coverage=_coverage(node.member("coverage")),
        findings=tuple(map(_finding, node.member("findings").items())),
        tensors=tuple(map(_tensor, node.member("tensors").items())),
        seconds=node.member("summary").member("seconds").number(),
        suppressed=tuple(map(_suppressed, node.member("suppressed").items())),
        activations=tuple(map(read_activation, node.member("activations").items())),
        verification=node.member("verification").maybe(read_verification),
        remarks=tuple(item.text() for item in node.member("remarks").items()),
        proof=node.member("proof").maybe(_proof),
    )


def _source(node: Node) -> Source:
    return Source(
        uri=node.member("uri").text(),
        revision=node.member("revision").maybe(Node.text),
        format=node.member("format").text(),
        architecture=node.member("architecture").text(),
        files=tuple(map(_file, node.member("files").items())),
    )


def _file(node: Node) -> FileInfo:
    return FileInfo(
        name=node.member("name").text(),
        size=node.member("size").count(),
        tensors=node.member("tensors").count(),
    )


def _coverage(node: Node) -> Coverage:
    return Coverage(
        expected=node.member("expected").count(),
        measured=node.member("measured").count(),
        skipped=tuple(
            Skipped(item.member("tensor").text(), item.member("reason").text())
            for item in node.member("skipped").items()
        ),
    )


def _proof(node: Node) -> Proof:
    return Proof(
        values=node.member("values").count(),
        safe=node.member("safe").count(),
        assumptions=tuple(item.text() for item in node.member("assumptions").items()),
        scores=node.member("scores").count(),
        scores_safe=node.member("scores_safe").count(),
    )


def _finding(node: Node) -> Finding:
    return Finding(
        rule=node.member("rule").text(),
        name=node.member("name").text(),
        severity=node.member("severity").choice(SEVERITIES),
        message=node.member("message").text(),
        tensor=node.member("tensor").maybe(Node.text),
        file=node.member("file").maybe(Node.text),
        evidence={key: read_scalar(item) for key, item in node.member("evidence").table().items()},
        repair=node.member("repair").maybe(_repair),
    )


def _repair(node: Node) -> Repair:
    return Repair(node.member("pass").text(), node.member("exactness").choice(get_args(Exactness)))


def _suppressed(node: Node) -> Suppressed:
    return Suppressed(
        finding=_finding(node.member("finding")),
        by=node.member("by").choice(get_args(SuppressedBy)),
        reason=node.member("reason").text(),
        origin=node.member("origin").text(),
    )


def _tensor(node: Node) -> MeasuredTensor:
    return MeasuredTensor(
        info=_info(node),
        stats=read_rows(node, read_figures(node)),
        role=node.member("role").choice(get_args(Role)),
        limit=node.member("limit").maybe(Node.number),
    )


def _info(node: Node) -> TensorInfo:
    offset = node.member("offset").count()
    return TensorInfo(
        name=node.member("name").text(),
        dtype=node.member("dtype").text(),
        shape=read_shape(node),
        file=node.member("file").text(),
        start=offset,
        stop=offset + node.member("bytes").count(),
    )
