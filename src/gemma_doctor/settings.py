"""What the user has written down: configuration files and baselines.

Settings come from one file, the first of these that exists, and the command line wins over it, key by key:

1. the file that ``--config`` names;
2. ``gemma-doctor.toml`` beside the checkpoint;
3. ``[tool.gemma-doctor]`` in the nearest ``pyproject.toml`` that has it, from the current folder upwards.

The second may come from a stranger, together with the weights. So what it says is always shown (:func:`notice`), and
what it sets aside is counted in every report.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from gemma_doctor import catalog
from gemma_doctor.choices import FAIL_ON, LOADERS, SEVERITIES, TARGET_DTYPES, FailOn, Loader, TargetDtype
from gemma_doctor.errors import SettingsError, UsageError
from gemma_doctor.inspect.suppression import Allow, Baseline, Ignore, Known
from gemma_doctor.nodes import Node, parse_json
from gemma_doctor.records import Report

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["BESIDE", "Settings", "baseline_text", "find", "notice", "read_baseline"]

T = TypeVar("T")

BESIDE = "gemma-doctor.toml"
"""Name of the settings file that may lie beside a checkpoint."""

_TABLE = "gemma-doctor"  # [tool.gemma-doctor]
_KEYS = ("select", "ignore", "fail-on", "target-dtype", "loader", "per-tensor-ignores", "allow")
_MAX_BYTES = 16 << 20  # a settings file that is larger is a mistake; read no more of it
_BASELINE_VERSION = 1
_ALLOW_KEYS = ("rule", "tensor", "sha256", "reason")
_KNOWN_KEYS = tuple(field.name for field in fields(Known))
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a settings file says; None or empty where it says nothing.

    Attributes:
        select: Rules to run: ids or prefixes.
        ignore: Rules to leave out: ids or prefixes.
        fail_on: The least severity that makes a scan fail.
        target_dtype: The dtype to judge for.
        loader: The loader to judge for.
        per_tensor_ignores: Rules that do not count on some tensors.
        allow: Findings accepted for exactly these bytes.
        origin: The file, as messages call it; empty where there is none.
        beside: Whether it lies beside the checkpoint, and so may be a stranger's.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    fail_on: FailOn | None = None
    target_dtype: TargetDtype | None = None
    loader: Loader | None = None
    per_tensor_ignores: tuple[Ignore, ...] = ()
    allow: tuple[Allow, ...] = ()
    origin: str = ""
    beside: bool = False


def find(source: str, config: Path | None, folder: Path) -> Settings:
    """The settings that hold for a scan.

    Args:
        source: SOURCE of the scan; a file or folder on this machine may have ``gemma-doctor.toml`` beside it.
        config: The file given on the command line; nothing else is read then.
        folder: The current folder, from which ``pyproject.toml`` is sought upwards.

    Raises:
        SettingsError: If the file that holds cannot be read, or says what cannot be.
    """
    if config is not None:
        return _given(config)
    path = Path(source)
    beside = (path if path.is_dir() else path.parent) / BESIDE
    if path.exists() and beside.is_file():
        return _settings(_toml(beside), f"{BESIDE} beside the checkpoint", beside=True)
    for parent in (folder, *folder.parents):
        project = parent / "pyproject.toml"
        table = _project_table(project) if project.is_file() else None
        if table is not None:
            return _settings(table, str(project))
    return Settings()


def _given(config: Path) -> Settings:
    """The settings of the file that the command line names."""
    table = _project_table(config) if config.name == "pyproject.toml" else _toml(config)
    if table is None:
        raise SettingsError(f"{config} has no [tool.{_TABLE}] table")
    return _settings(table, str(config))


def _project_table(project: Path) -> Node | None:
    """The table [tool.gemma-doctor] of a pyproject.toml; None where it has none."""
    tool = _toml(project).table().get("tool")
    return None if tool is None else tool.table().get(_TABLE)


def _toml(path: Path) -> Node:
    """A parsed TOML file."""

    def error(message: str) -> SettingsError:
        return SettingsError(f"{path}: {message}")

    text = _text(path)
    try:
        return Node(tomllib.loads(text), "", error)
    except (ValueError, RecursionError) as problem:  # or numbers of 4,301 digits, thousands of brackets
        raise error(f"not TOML: {problem}") from problem


def _text(path: Path) -> str:
    """The text of a settings file or baseline."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise SettingsError(f"{path} is larger than {_MAX_BYTES >> 20} MiB; is it the right file?")
        return data.decode()
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise SettingsError(f"{path} cannot be read: {reason}") from problem


def _settings(table: Node, origin: str, *, beside: bool = False) -> Settings:
    keys = table.table(_KEYS)

    def read(key: str, reader: Callable[[Node], T], default: T) -> T:
        return reader(keys[key]) if key in keys else default

    return Settings(
        select=read("select", _rules, ()),
        ignore=read("ignore", _rules, ()),
        fail_on=read("fail-on", lambda node: node.choice(FAIL_ON), None),
        target_dtype=read("target-dtype", lambda node: node.choice(TARGET_DTYPES), None),
        loader=read("loader", lambda node: node.choice(LOADERS), None),
        per_tensor_ignores=read("per-tensor-ignores", lambda node: _ignores(node, origin), ()),
        allow=read("allow", lambda node: tuple(_allow(entry, origin) for entry in node.items()), ()),
        origin=origin,
        beside=beside,
    )


def _rules(node: Node) -> tuple[str, ...]:
    """Ids or prefixes of rules, each of which names a rule."""
    items = node.items()
    for item in items:
        _known_rule(item, lambda word: catalog.select([word]))
    return tuple(item.text() for item in items)


def _known_rule(node: Node, look_up: Callable[[str], T]) -> T:
    try:
        return look_up(node.text())
    except SettingsError:
        raise
    except UsageError as problem:
        node.refuse(str(problem))


def _ignores(node: Node, origin: str) -> tuple[Ignore, ...]:
    return tuple(
        Ignore(glob, tuple(rule.id for rule in catalog.select(_rules(rules))) if rules.items() else (), origin)
        for glob, rules in node.table().items()
    )


def _allow(node: Node, origin: str) -> Allow:
    node.table(_ALLOW_KEYS)
    sha256 = node.member("sha256").text().lower()
    if not _SHA256.fullmatch(sha256):
        node.member("sha256").expected("64 hexadecimal digits, the SHA-256 of the tensor's bytes")
    reason = node.member("reason").text().strip()
    if not reason:
        node.member("reason").expected("a reason that whoever reads it later understands")
    rule = _known_rule(node.member("rule"), catalog.find_rule).id
    return Allow(rule, node.member("tensor").text(), sha256, reason, origin)


def notice(settings: Settings) -> str:
    """A sentence on settings that may be a stranger's; empty where there is nothing to say."""
    said = {
        "select": ", ".join(settings.select),
        "ignore": ", ".join(settings.ignore),
        "fail-on": settings.fail_on,
        "target-dtype": settings.target_dtype,
        "loader": settings.loader,
        "per-tensor-ignores": len(settings.per_tensor_ignores),
        "allow": len(settings.allow),
    }
    words = [f"{key} {value}" for key, value in said.items() if value]
    if not settings.beside or not words:
        return ""
    return f"settings of {settings.origin} hold: {'; '.join(words)} (--config FILE reads another file instead)"


def read_baseline(path: Path) -> Baseline:
    """The baseline that ``--write-baseline`` has written.

    Raises:
        SettingsError: If it cannot be read; the message names the line and column, or the entry.
    """

    def error(message: str) -> SettingsError:
        return SettingsError(f"{path} is not a baseline that can be read: {message}")

    document = parse_json(_text(path), error)
    document.table(("schema_version", "findings"))
    version = document.member("schema_version").count()
    if version != _BASELINE_VERSION:
        document.refuse(f"schema version {version}; this gemma-doctor reads version {_BASELINE_VERSION}")
    return Baseline(tuple(map(_known, document.member("findings").items())), str(path))


def _known(node: Node) -> Known:
    node.table(_KNOWN_KEYS)
    return Known(
        rule=node.member("rule").text(),
        severity=node.member("severity").choice(SEVERITIES),
        tensor=node.member("tensor").maybe(Node.text),
        file=node.member("file").maybe(Node.text),
    )


def baseline_text(report: Report) -> str:
    """The report's findings as a baseline: sorted, one a line, so that a change of it reads well as a diff.

    It holds what counts and what the present baseline set aside, and nothing that is set aside for another reason.
    """
    held = [item.finding for item in report.suppressed if item.by == "baseline"]
    entries = sorted(map(Known.of, (*report.findings, *held)), key=_order)
    lines = ",\n".join(f"    {json.dumps(asdict(entry))}" for entry in entries)
    findings = f"[\n{lines}\n  ]" if entries else "[]"
    return f'{{\n  "schema_version": {_BASELINE_VERSION},\n  "findings": {findings}\n}}\n'


def _order(entry: Known) -> tuple[str, ...]:
    return (entry.rule, entry.tensor or "", entry.file or "", entry.severity)
