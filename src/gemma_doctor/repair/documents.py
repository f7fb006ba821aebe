"""Plans as JSON, both ways. ``plan.schema.json`` in the package describes the document.

Reading is strict: an unknown key, a wrong type or a number out of range is an error that names the file and the field.
Law: a plan that is written and read again is the same plan.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

from gemma_doctor.checkpoint.dtypes import BITS
from gemma_doctor.choices import SEVERITIES
from gemma_doctor.nodes import Node
from gemma_doctor.plans import (
    PLAN_VERSION,
    Add,
    Cast,
    Clamp,
    Drop,
    Edit,
    FileMark,
    Fingerprint,
    Left,
    Plan,
    Reason,
    Rename,
    Scale,
    ScaleGain,
    SetConfig,
    SetMetadata,
    ZeroNonfinite,
)
from gemma_doctor.records import Exactness, Scalar
from gemma_doctor.repair.reading import read
from gemma_doctor.spelling import did_you_mean

__all__ = ["plan_document", "plan_text", "read_plan"]

_OPS: Mapping[str, type[Edit]] = {
    "scale": Scale,
    "scale-gain": ScaleGain,
    "cast": Cast,
    "clamp": Clamp,
    "zero-nonfinite": ZeroNonfinite,
    "drop": Drop,
    "add": Add,
    "rename": Rename,
    "set-config": SetConfig,
    "set-metadata": SetMetadata,
}
_NAMES = {kind: op for op, kind in _OPS.items()}
_COMMON = ("op", "pass", "exactness", "reason")  # what every edit says beside its own fields
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WIDEST_EXPONENT = 2200  # beyond it every number of every dtype has become zero or too large


def plan_document(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values.

    Args:
        plan: The plan.
    """
    return {
        "schema_version": PLAN_VERSION,
        "kind": "plan",
        "tool": {"name": "gemma-doctor", "version": plan.version},
        "source": plan.source,
        "fingerprint": {
            "files": [asdict(mark) for mark in plan.fingerprint.files],
            "tensors": dict(plan.fingerprint.tensors),
            "config_sha256": plan.fingerprint.config,
        },
        "edits": [_edit_document(edit) for edit in plan.edits],
        "left": [asdict(item) for item in plan.left],
    }


def plan_text(plan: Plan) -> str:
    """The plan as the text of a JSON file, one edit a line: it can be read, compared and edited.

    Args:
        plan: The plan.
    """
    document = plan_document(plan)
    lines = {key: ",\n".join(f"    {_line(item)}" for item in document[key]) for key in ("edits", "left")}
    head = json.dumps({key: value for key, value in document.items() if key not in lines}, indent=2, allow_nan=False)
    lists = ",\n".join(f'  "{key}": [\n{text}\n  ]' if text else f'  "{key}": []' for key, text in lines.items())
    return f"{head.removesuffix('}').rstrip()},\n{lists}\n}}\n"


def read_plan(path: Path) -> Plan:
    """The plan that a file holds.

    Raises:
        UsageError: If it is none; the message names the file and the field.
    """
    document = read(path, "plan", PLAN_VERSION)
    document.table(("schema_version", "kind", "tool", "source", "fingerprint", "edits", "left"))
    tool = document.member("tool")
    tool.table(("name", "version"))
    tool.member("name").choice(("gemma-doctor",))
    return Plan(
        version=tool.member("version").text(),
        source=document.member("source").text(),
        fingerprint=_fingerprint(document.member("fingerprint")),
        edits=tuple(map(_edit, document.member("edits").items())),
        left=tuple(map(_left, document.member("left").items())),
    )


def _line(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def _edit_document(edit: Edit) -> dict[str, Any]:
    own = {key: value for key, value in asdict(edit).items() if key not in {"pass_name", "exactness", "reason"}}
    return {
        "op": _NAMES[type(edit)],
        **{key: list(value) if isinstance(value, tuple) else value for key, value in own.items()},
        "pass": edit.pass_name,
        "exactness": edit.exactness,
        "reason": asdict(edit.reason),
    }


def _fingerprint(node: Node) -> Fingerprint:
    node.table(("files", "tensors", "config_sha256"))
    tensors, config = node.member("tensors").table(), node.member("config_sha256")
    return Fingerprint(
        files=tuple(map(_mark, node.member("files").items())),
        tensors={name: _sha256(value) for name, value in tensors.items()},
        config=None if config.value is None else _sha256(config),
    )


def _mark(node: Node) -> FileMark:
    node.table(("name", "size", "header_sha256"))
    return FileMark(_name(node.member("name")), node.member("size").count(), _sha256(node.member("header_sha256")))


def _left(node: Node) -> Left:
    node.table(("rule", "severity", "tensor", "reason"))
    return Left(
        rule=node.member("rule").text(),
        severity=node.member("severity").choice(SEVERITIES),
        tensor=node.member("tensor").maybe(Node.text),
        reason=node.member("reason").text(),
    )


def _edit(node: Node) -> Edit:
    kind = _OPS[node.member("op").choice(tuple(_OPS))]
    own = [field.name for field in fields(kind) if field.name in _FIELDS]
    node.table((*_COMMON, *own))
    values: dict[str, Any] = {name: _FIELDS[name](node.member(name)) for name in own}
    exactnesses: tuple[Exactness, ...] = get_args(Exactness)
    return kind(
        **values,
        pass_name=_name(node.member("pass")),
        exactness=node.member("exactness").choice(exactnesses),
        reason=_reason(node.member("reason")),
    )


def _reason(node: Node) -> Reason:
    node.table(("rule", "message", "evidence"))
    evidence = {key: _scalar(value) for key, value in node.member("evidence").table().items()}
    return Reason(node.member("rule").text(), node.member("message").text(), evidence)


def _sha256(node: Node) -> str:
    text = node.text()
    if not _SHA256.fullmatch(text):
        node.expected("64 lower-case hexadecimal digits")
    return text


def _name(node: Node) -> str:
    return node.text() or node.expected("a name that is not empty")


def _scalar(node: Node) -> Scalar:
    if isinstance(node.value, str | bool) or node.value is None:
        return node.value
    return node.number()


def _exponent(node: Node) -> int:
    value = node.value
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _WIDEST_EXPONENT:
        node.expected(f"an integer from -{_WIDEST_EXPONENT} to {_WIDEST_EXPONENT}")
    return value


def _dtype(node: Node) -> str:
    text = node.text()
    if text not in BITS:
        node.refuse(f"{text[:40]!r} is no dtype of safetensors{did_you_mean(text[:40], BITS)}")
    return text


def _uint32(node: Node) -> int:
    number = node.count()
    if number >= 1 << 32:
        node.expected("an integer below 2**32")
    return number


def _path(node: Node) -> tuple[str, ...]:
    keys = tuple(map(_name, node.items()))
    return keys or node.expected("at least one key")


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(extent.count() for extent in node.items())


_FIELDS: Mapping[str, Callable[[Node], object]] = {
    "tensor": _name,
    "exponent": _exponent,
    "dtype": _dtype,
    "limit": Node.magnitude,
    "shape": _shape,
    "beside": _name,
    "to": _name,
    "path": _path,
    "value": _scalar,
    "file": _name,
    "key": _name,
    "number": _uint32,
}
"""How each field of an edit is read."""
