"""Documents that strangers write, mutated: each reader of them refuses with its own error, or keeps its law.

A reader here is called on the bytes of a file and says whether it accepted them. Any other exception is a fault of
the reader, and so is a document that takes much longer or much more memory than its size accounts for.
"""

from __future__ import annotations

import io
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from zipfile import ZipFile

import checkpoint_bytes
import gguf_bytes
import numpy as np
from applying import add, cast, clamp, drop, plan_for, rename, scale, scale_gain, set_config, zero
from checkpoints import (
    bfloat16,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
    write,
)
from sample_reports import PUBLISHED, finding, report
from sample_verifications import verified

from gemma_doctor import settings
from gemma_doctor.architectures import gguf, identify
from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.checkpoint.config import read_config
from gemma_doctor.checkpoint.gguf_header import read_gguf_header
from gemma_doctor.checkpoint.index import read_index
from gemma_doctor.checkpoint.stores import Folder
from gemma_doctor.errors import HeaderError, IndexFileError, SettingsError, SourceNotFoundError, UsageError
from gemma_doctor.repair.documents import plan_text, read_plan
from gemma_doctor.repair.evidence.calibration import read_calibration
from gemma_doctor.reports.machine import from_json, to_json
from gemma_doctor.reports.trace_file import to_trace

Reader: TypeAlias = Callable[[bytes], bool]
Mutator: TypeAlias = "Callable[[bytes, random.Random], bytes]"

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX_NAME = "model.safetensors.index.json"
INDEXES = (
    b'{"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "../x"}}',
    b'{"weight_map":{"b":"model-00002-of-00002.safetensors"},"metadata":{"total_size":8.0,"x":[1e400,NaN,{"y":[]}]}}',
    b'{"weight_map":{}}',
)

CORPORA = Path(__file__).with_name("data") / "corpora"

MOST_TENSORS = 200_000
"""More than any config within its limits declares: 1024 layers of the widest family have 25,000."""

SETTINGS = b"""select = ["GD1", "GD301"]
ignore = ["GD108"]
fail-on = "warning"
target-dtype = "float16"
loader = "vllm"
per-tensor-ignores = { "*.bias" = ["GD106"], "a*" = [] }
[[allow]]
rule = "GD102"
tensor = "a.weight"
sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
reason = "a head that is never run in float16"
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A reader, sound documents to begin with, and what makes other documents of them."""

    reader: Reader
    seeds: tuple[bytes, ...]
    mutated: Mutator = checkpoint_bytes.mutated


def corpus(name: str) -> tuple[bytes, ...]:
    """Documents that fuzzing found worth keeping: each takes a step from line to line that no smaller one takes."""
    with ZipFile(CORPORA / f"{name}.zip") as archive:
        return tuple(archive.read(document) for document in archive.namelist())


@contextmanager
def _file(text: bytes, name: str) -> Iterator[Path]:
    """The text in a file of its own."""
    with tempfile.TemporaryDirectory(prefix="gemma-doctor-") as folder:
        path = Path(folder, name)
        path.write_bytes(text)
        yield path


def reads_header(header: bytes) -> bool:
    """Whether a safetensors file with this header is accepted; the official parser must say and read the same."""
    raw = checkpoint_bytes.with_data(header)
    theirs, ours = checkpoint_bytes.official(raw), checkpoint_bytes.ours(raw)
    if theirs != ours:
        raise AssertionError(f"official {theirs!r}, ours {ours!r}")
    return ours is not None


def reads_index(text: bytes) -> bool:
    """Whether an index is accepted; then it holds what the json module reads, and leads to no file but its shards."""
    with _file(text, INDEX_NAME) as path:
        for name, shard in zip("ab", SHARDS, strict=True):
            checkpoint_bytes.write_file(path.with_name(shard), name)
        try:
            index = read_index(Folder(path.parent), path.name)
            checkpoint = open_checkpoint(path)
        except (IndexFileError, SourceNotFoundError):
            return False
    if json.loads(text)["weight_map"] != index.weight_map:
        raise AssertionError(f"another weight_map: {index.weight_map!r}")
    read = {os.path.normpath(tensor.file) for tensor in checkpoint.tensors.values()}
    if not read <= set(SHARDS):
        raise AssertionError(f"files that are no shards: {read}")
    return True


def reads_gguf(raw: bytes) -> bool:
    """Whether a GGUF file is accepted; then the gguf package reads the same tensors, and few of them share KV."""
    ours = gguf_bytes.ours(raw)
    if ours is None:
        return False
    theirs = gguf_bytes.official(raw)
    if theirs != ours:
        raise AssertionError(f"gguf {theirs!r}, ours {ours!r}")
    try:
        model = gguf.identify(read_gguf_header(io.BytesIO(raw), len(raw), "x.gguf").metadata)
    except HeaderError:
        return False
    if len(model.shared_kv) > MOST_TENSORS:
        raise AssertionError(f"{len(model.shared_kv)} tensors of layers that share KV")
    return True


def reads_config(text: bytes) -> bool:
    """Whether a config is accepted; then it declares no more tensors than its limits allow."""
    with _file(text, "config.json") as path:
        try:
            model = identify(read_config(Folder(path.parent)))
        except IndexFileError:
            return False
    if len(model.expected) > MOST_TENSORS or len(model.values) > MOST_TENSORS:
        raise AssertionError(f"{len(model.expected)} tensors, {len(model.values)} values")
    return True


def reads_settings(text: bytes) -> bool:
    """Whether a settings file is accepted; then it can be announced in one line."""
    with _file(text, settings.BESIDE) as path:
        try:
            found = settings.find(str(path.parent), None, path.parent)
        except SettingsError:
            return False
    if "\n" in settings.notice(found):
        raise AssertionError(f"an announcement of several lines: {settings.notice(found)!r}")
    return True


def reads_baseline(text: bytes) -> bool:
    """Whether a baseline is accepted."""
    with _file(text, "baseline.json") as path:
        try:
            settings.read_baseline(path)
        except SettingsError:
            return False
    return True


def reads_plan(text: bytes) -> bool:
    """Whether a plan is accepted; then it is the same plan when it is written and read again."""
    with _file(text, "plan.json") as path:
        try:
            plan = read_plan(path)
        except UsageError:
            return False
        path.write_text(plan_text(plan), encoding="utf-8")
        if read_plan(path) != plan:
            raise AssertionError(f"another plan when read again: {plan!r}")
    return True


def reads_report(text: bytes) -> bool:
    """Whether a saved report is accepted; then it is written as it was read."""
    try:
        found = from_json(text)
    except UsageError:
        return False
    if json.loads(to_json(found)) != json.loads(text):
        raise AssertionError(f"another report when written again: {text!r}")
    return True


def reads_trace(text: bytes) -> bool:
    """Whether a trace is accepted."""
    with _file(text, "trace.json") as path:
        try:
            read_calibration(path)
        except UsageError:
            return False
    return True


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


def _plan() -> bytes:
    """A plan with an edit of each kind."""
    vectors = {name: bfloat16(np.ones((2, 2))) for name in ("a", "b", "c", "d", "e", "f", "g")}
    edits = (scale("a", 2), scale_gain("b", -3), cast("c", "F32"), clamp("d", 65504.0), zero("e"), drop("f"))
    more = (rename("g", "h"), add("i", "F32", (2,), "a"), set_config("float16", "text_config", "dtype"))
    with tempfile.TemporaryDirectory(prefix="gemma-doctor-") as folder:
        write(Path(folder, "source"), vectors, {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}})
        return plan_text(plan_for(open_checkpoint(Path(folder, "source")), *edits, *more)).encode()


def targets() -> Mapping[str, Target]:
    """Every reader, by the name of what it reads."""
    configs = (tiny_gemma3_config(), tiny_gemma3_multimodal_config(), tiny_gemma3n_text_config(), tiny_gemma3n_config())
    measured = report([finding(), finding("GD104", "warning")], PUBLISHED)
    return {
        "header": Target(reads_header, checkpoint_bytes.SEEDS),
        "index": Target(reads_index, INDEXES),
        "gguf": Target(reads_gguf, gguf_bytes.SEEDS, gguf_bytes.mutated),
        "config": Target(reads_config, tuple(map(_json, configs))),
        "settings": Target(reads_settings, (SETTINGS,)),
        "baseline": Target(reads_baseline, (settings.baseline_text(measured).encode(),)),
        "plan": Target(reads_plan, (_plan(),)),
        "report": Target(reads_report, (to_json(measured).encode(), to_json(verified()).encode())),
        "trace": Target(reads_trace, (to_trace(verified()).encode(),)),
    }
