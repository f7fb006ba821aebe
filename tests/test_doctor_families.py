"""``gemma_doctor.scan`` where the architecture decides: tied heads, key layouts, and a real merged checkpoint."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from architecture_data import manifest, merged_config, merged_index
from checkpoint_bytes import framed
from checkpoints import (
    Array,
    Raw,
    bfloat16,
    healthy,
    in_bfloat16,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    write,
)
from command import call

import gemma_doctor
from gemma_doctor import Options, Report, TensorInfo
from gemma_doctor.architectures import identify
from gemma_doctor.doctor import scanning
from gemma_doctor.inspect.orders import Order
from gemma_doctor.inspect.survey import Survey
from gemma_doctor.tensors import TensorStats

GEMMA3 = tiny_gemma3_config()
SOUND = healthy(GEMMA3)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def verdicts(scanned: Report) -> list[tuple[str, str, str | None]]:
    return [(finding.rule, finding.severity, finding.tensor) for finding in scanned.findings]


# What is proved of activations, and what is not


@pytest.mark.parametrize(
    ("made", "family", "proved"),
    [("Llama", "llama", False), ("Gemma", "gemma", False), ("Gemma2", "gemma2", True), ("Gemma3", "gemma3", True)],
)
def test_where_no_bounds_are_known_a_scan_says_so(tmp_path: Path, made: str, family: str, proved: bool) -> None:  # noqa: FBT001
    config = {**GEMMA3, "architectures": [f"{made}ForCausalLM"]}
    folder = write(tmp_path / "model", in_bfloat16(healthy(config)), config)
    outputs = {option: tmp_path / option.strip("-") for option in ("--json", "--html", "--markdown")}
    done = call("scan", folder, *(word for pair in outputs.items() for word in pair))
    scanned = json.loads(outputs["--json"].read_text())
    assert (done.code, scanned["source"]["architecture"]) == (0, family)
    assert (scanned["proof"] is not None, scanned["remarks"] == []) == (proved, proved)
    for text in (" ".join(done.out.split()), *(path.read_text() for path in outputs.values())):
        assert (f"no bounds on activations are known for {family}" in text) == (not proved)


def test_nothing_is_said_of_proofs_that_nobody_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path, in_bfloat16(healthy({**GEMMA3, "architectures": ["LlamaForCausalLM"]})), None)
    (folder / "config.json").write_text(json.dumps({**GEMMA3, "architectures": ["LlamaForCausalLM"]}))
    assert gemma_doctor.scan(folder).remarks
    assert gemma_doctor.scan(folder, Options(target_dtype="bfloat16")).remarks == ()
    assert gemma_doctor.scan(folder, Options(include=("*norm*",))).remarks == ()


# A head that is stored although the config ties it


def with_head(head: Array | Raw, embedding: Array | Raw | None = None) -> dict[str, Array | Raw]:
    stored: dict[str, Array | Raw] = {**in_bfloat16(SOUND), HEAD: head}
    return stored if embedding is None else {**stored, EMBEDDING: embedding}


def swapped(values: Array) -> Array:
    """The same numbers in rows in another order: no statistic tells them apart."""
    return np.roll(values, 1, axis=0)


ODD = SOUND[EMBEDDING] + 0
ODD[0, 0] = np.nan


@pytest.mark.parametrize(
    ("tensors", "severity", "verdict"),
    [
        (with_head(bfloat16(SOUND[EMBEDDING])), "note", "equal"),
        (with_head(bfloat16(swapped(SOUND[EMBEDDING]))), "error", "different"),
        (with_head(bfloat16(SOUND[EMBEDDING] * 2)), "error", "different"),
        (with_head(bfloat16(SOUND[EMBEDDING][:-1])), "error", "different"),
        (with_head(SOUND[EMBEDDING]), "error", "different"),
        (with_head(bfloat16(np.ones((64, 16))), np.ones((64, 16), np.float32)), "note", "unknown"),
    ],
    ids=["equal", "swapped", "scaled", "shorter", "unrounded", "another dtype"],
)
@pytest.mark.parametrize("shards", [1, 2])
def test_a_stored_head_is_compared_byte_by_byte(
    tmp_path: Path, tensors: dict[str, Array | Raw], severity: str, verdict: str, shards: int
) -> None:
    scanned = gemma_doctor.scan(write(tmp_path, tensors, GEMMA3, shards=shards), Options(select=("GD208",)))
    (finding,) = scanned.findings
    assert (finding.rule, finding.severity, finding.tensor) == ("GD208", severity, HEAD)
    assert finding.evidence["comparison"] == verdict


def test_equal_bytes_are_equal_even_if_they_are_no_numbers(tmp_path: Path) -> None:
    tensors = with_head(bfloat16(ODD), bfloat16(ODD))
    scanned = gemma_doctor.scan(write(tmp_path, tensors, GEMMA3), Options(select=("GD208",)))
    assert [finding.evidence["comparison"] for finding in scanned.findings] == ["equal"]


def test_a_head_without_its_embedding_is_not_compared(tmp_path: Path) -> None:
    folder = write(tmp_path, with_head(bfloat16(SOUND[EMBEDDING])), GEMMA3)
    scanned = gemma_doctor.scan(folder, Options(include=(HEAD,), select=("GD208",)))
    assert [(finding.severity, finding.evidence["comparison"]) for finding in scanned.findings] == [("note", "unknown")]


def test_a_head_that_is_not_tied_is_a_tensor_as_any(tmp_path: Path) -> None:
    config = {**GEMMA3, "tie_word_embeddings": False}
    assert verdicts(gemma_doctor.scan(write(tmp_path, with_head(bfloat16(swapped(SOUND[EMBEDDING]))), config))) == []


# The names that Gemma 3 has had


def as_on_the_hub(name: str) -> str:
    return name


def as_in_memory(name: str) -> str:
    return "model." + re.sub(r"^language_model\.model\.", "language_model.", name)


def as_saved_anew(name: str) -> str:
    return name.replace("vision_tower.vision_model.", "vision_tower.")


@pytest.mark.parametrize(("rename", "stale"), [(as_on_the_hub, False), (as_in_memory, True), (as_saved_anew, True)])
def test_gemma3_is_known_by_any_of_its_names(tmp_path: Path, rename: Callable[[str], str], *, stale: bool) -> None:
    config = tiny_gemma3_multimodal_config()
    names = {rename(name): name for name in healthy(config)}
    tensors = {rename(name): tensor for name, tensor in in_bfloat16(healthy(config)).items()}
    scanned = gemma_doctor.scan(write(tmp_path, tensors, config))
    assert verdicts(scanned) == ([("GD209", "warning", None)] if stale else [])
    expected = identify(config).expected
    assert {tensor.info.name: tensor.role for tensor in scanned.tensors} == {
        new: expected[old].role for new, old in names.items()
    }


@pytest.mark.parametrize("rename", [as_on_the_hub, as_in_memory, as_saved_anew])
def test_a_fault_is_found_under_any_name(tmp_path: Path, rename: Callable[[str], str]) -> None:
    config = tiny_gemma3_multimodal_config()
    sick = dict(healthy(config))
    norm = "language_model.model.layers.1.input_layernorm.weight"
    sick[norm] = np.full(16, np.inf, np.float32)
    del sick["language_model.model.norm.weight"]
    tensors = {rename(name): tensor for name, tensor in in_bfloat16(sick).items()}
    scanned = gemma_doctor.scan(write(tmp_path, tensors, config), Options(ignore=("GD209",)))
    assert verdicts(scanned) == [
        ("GD101", "error", rename(norm)),
        ("GD205", "error", rename("language_model.model.norm.weight")),
    ]


# A real merged Gemma 3n E2B: its config and index, its names, shapes and file layout, and no weights


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """10.9 GB that take no space: real headers above holes."""
    index = merged_index()
    shards: dict[str, dict[str, object]] = defaultdict(dict)
    sizes: dict[str, int] = defaultdict(int)
    shapes = {name: shape for name, (shape, _) in manifest("gemma-3n-E2B").items()}
    for name, file in index["weight_map"].items():
        stop = sizes[file] + 2 * math.prod(shapes[name])
        shards[file][name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [sizes[file], stop]}
        sizes[file] = stop
    for file, entries in shards.items():
        header = framed(json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode())
        with (tmp_path / file).open("wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + sizes[file])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(merged_config()))
    return tmp_path


def sound_figures(order: Order, **_: object) -> Survey:
    """Figures as of a sound initialisation (rows of unit length, zero biases), without looking at any byte."""
    return Survey({tensor.name: _sound(tensor) for tensor in order.wanted}, ())


def _sound(tensor: TensorInfo) -> TensorStats:
    if tensor.name.endswith(".bias"):
        return TensorStats(count=tensor.numel, zeros=tensor.numel, minimum=0.0, maximum=0.0)
    squares = Fraction(tensor.shape[0])
    if not tensor.shape[1:]:
        return TensorStats(count=tensor.numel, minimum=-0.5, maximum=0.5, squares=squares)
    l1 = math.sqrt(math.prod(tensor.shape[1:]))
    return TensorStats(
        count=tensor.numel, minimum=-0.5, maximum=0.5, squares=squares, row_l1_max=l1, row_squares_max=1.0
    )


def test_the_merged_checkpoints_float16_is_seen(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "survey", sound_figures)
    scanned = gemma_doctor.scan(merged)
    by_rule = defaultdict(list)
    for finding in scanned.findings:
        by_rule[finding.rule].append(finding)
    assert (scanned.source.architecture, scanned.coverage.measured, scanned.complete) == ("gemma3n", 1556, True)
    assert sum(tensor.info.nbytes for tensor in scanned.tensors) == merged_index()["metadata"]["total_size"]
    (mismatch,) = by_rule.pop("GD203")
    assert mismatch.message.startswith(
        "The config says float16, and 1,556 of 1,556 floating-point tensors are stored as"
    )
    assert {finding.tensor for finding in by_rule.pop("GD202")} == {
        f"model.language_model.layers.{layer}.self_attn.{part}.weight"
        for layer in range(20, 30)
        for part in ("k_norm", "k_proj", "v_proj")
    }
    assert [finding.severity for finding in by_rule.pop("GD106", [])].count("note") == len(
        [name for name in merged_index()["weight_map"] if name.endswith(".bias")]
    )
    assert list(by_rule) == []


def test_one_tensor_of_a_large_file_is_read_alone(merged: Path) -> None:
    name = "model.language_model.layers.3.self_attn.q_norm.weight"
    scanned = gemma_doctor.scan(merged, Options(include=(name,)))
    assert [(tensor.info.name, tensor.stats.zeros) for tensor in scanned.tensors] == [(name, 256)]
    assert verdicts(scanned)[0] == ("GD106", "warning", name)
