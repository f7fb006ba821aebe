"""``gemma_doctor.scan`` on real files: what was covered, what was found, and the exit code that it earns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_bytes import Content, content_file, write_file
from checkpoints import (
    Array,
    Raw,
    bfloat16,
    healthy,
    in_bfloat16,
    plant,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
    write,
)
from command import call
from sample_reports import finding, report

import gemma_doctor
from gemma_doctor import Options, Report, exit_code
from gemma_doctor.choices import FAIL_ON, FailOn, Severity
from gemma_doctor.errors import UsageError
from gemma_doctor.records import Coverage, Skipped

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gemma3": tiny_gemma3_config(),
    "gemma3-multimodal": tiny_gemma3_multimodal_config(),
    "gemma3n": tiny_gemma3n_config(),
    "gemma3n-text": tiny_gemma3n_text_config(),
}
STEM_BIAS = ("GD106", "note", "model.vision_tower.timm_model.conv_stem.conv.bias")


def found(scanned: Report) -> list[tuple[str, str, str | None]]:
    return [(finding.rule, finding.severity, finding.tensor) for finding in scanned.findings]


def matrices(*names: str) -> dict[str, Array | Raw]:
    """Sound float32 matrices."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.1, (16, 16)).astype(np.float32) for name in names}


# Coverage


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_sound_checkpoint_is_covered_and_healthy(tmp_path: Path, family: str, shards: int) -> None:
    config = CONFIGS[family]
    tensors = in_bfloat16(healthy(config))
    scanned = gemma_doctor.scan(write(tmp_path, tensors, config, shards=shards))
    assert scanned.coverage == Coverage(len(tensors), len(tensors))
    assert {tensor.info.name for tensor in scanned.tensors} == set(tensors)
    assert (scanned.source.architecture, scanned.source.format) == (family.partition("-")[0], "safetensors")
    assert len(scanned.source.files) == shards
    assert found(scanned) == ([STEM_BIAS] if family == "gemma3n" else [])
    assert (scanned.complete, exit_code(scanned), exit_code(scanned, "warning")) == (True, 0, 0)


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        ((), (), ["a.weight", "b.bias", "b.weight"]),
        (("b.*",), (), ["b.bias", "b.weight"]),
        ((), ("b.*",), ["a.weight"]),
        (("*.weight", "*.bias"), ("a*",), ["b.bias", "b.weight"]),
        (("[ab].bias",), (), ["b.bias"]),
        (("A.*", "a.weight"), (), ["a.weight"]),
    ],
)
def test_globs_choose_tensors(
    tmp_path: Path, include: tuple[str, ...], exclude: tuple[str, ...], names: list[str]
) -> None:
    folder = write(tmp_path, plant(matrices("a.weight", "b.weight", "b.bias"), "a.weight", np.nan))
    scanned = gemma_doctor.scan(folder, Options(include=include, exclude=exclude))
    assert sorted(tensor.info.name for tensor in scanned.tensors) == names
    assert scanned.coverage == Coverage(len(names), len(names))
    assert found(scanned) == ([("GD101", "error", "a.weight")] if "a.weight" in names else [])


def test_choosing_nothing_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path, matrices("a"))
    for options in (Options(include=("b",)), Options(exclude=("*",)), Options(include=("a",), exclude=("a",))):
        with pytest.raises(UsageError, match=r"no tensor of .* is selected; check --include and --exclude"):
            gemma_doctor.scan(folder, options)


def test_a_checkpoint_without_a_tensor_is_not_healthy(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content_file({}))
    scanned = gemma_doctor.scan(tmp_path)
    assert (scanned.coverage, scanned.complete) == (Coverage(0, 0), False)
    assert {exit_code(scanned, fail_on) for fail_on in FAIL_ON} == {2}


def test_tensors_without_elements_are_measured(tmp_path: Path) -> None:
    content: Content = {"none": ("F32", (0, 4), b""), "scalar": ("F32", (), b"\0\0\x80\x3f")}
    (tmp_path / "model.safetensors").write_bytes(content_file(content))
    scanned = gemma_doctor.scan(tmp_path)
    assert (scanned.coverage, found(scanned)) == (Coverage(2, 2), [("GD004", "note", None)])
    assert (exit_code(scanned, "warning"), exit_code(scanned, "note")) == (0, 1)


# What cannot be measured


def unmeasurable(folder: Path) -> Path:
    content: Content = {
        "packed": ("F4", (4,), bytes(2)),
        "six": ("F6_E2M3", (4,), bytes(3)),
        "wave": ("C64", (1,), bytes(8)),
        "sound": ("F32", (1,), b"\0\0\x80\x3f"),
    }
    (folder / "model.safetensors").write_bytes(content_file(content))
    return folder


def test_a_skipped_dtype_is_never_healthy(tmp_path: Path) -> None:
    scanned = gemma_doctor.scan(unmeasurable(tmp_path))
    assert (scanned.coverage.expected, scanned.coverage.measured, scanned.complete) == (4, 1, False)
    assert [skip.tensor for skip in scanned.coverage.skipped] == ["packed", "six", "wave"]
    assert {exit_code(scanned, fail_on) for fail_on in FAIL_ON} == {2}


def test_a_dtype_that_was_not_asked_for_does_not_matter(tmp_path: Path) -> None:
    scanned = gemma_doctor.scan(unmeasurable(tmp_path), Options(include=("sound",)))
    assert (scanned.coverage, exit_code(scanned)) == (Coverage(1, 1), 0)


@pytest.mark.parametrize(
    "options", [Options(), Options(include=("a",)), Options(exclude=("z",)), Options(select=("GD101",))]
)
def test_an_unreadable_file_may_hold_what_was_asked_for(tmp_path: Path, options: Options) -> None:
    write_file(tmp_path / "m-1-of-2.safetensors", "a")
    (tmp_path / "m-2-of-2.safetensors").write_bytes(b"\xff" * 100)
    scanned = gemma_doctor.scan(tmp_path, options)
    (skipped,) = scanned.coverage.skipped
    assert (skipped.tensor, scanned.coverage.expected, scanned.coverage.measured) == ("*", 2, 1)
    assert skipped.reason.startswith("whatever m-2-of-2.safetensors holds: m-2-of-2.safetensors: ")
    assert {exit_code(scanned, fail_on) for fail_on in FAIL_ON} == {2}


@pytest.mark.parametrize("options", [Options(), Options(include=("a",)), Options(ignore=("GD002",))])
def test_a_missing_shard_may_hold_what_was_asked_for(tmp_path: Path, options: Options) -> None:
    write_file(tmp_path / "model-00001-of-00002.safetensors", "a")
    scanned = gemma_doctor.scan(tmp_path, options)
    assert [skip.tensor for skip in scanned.coverage.skipped] == ["*"]
    assert {exit_code(scanned, fail_on) for fail_on in FAIL_ON} == {2}


def test_one_shard_alone_is_all_that_was_asked_for(tmp_path: Path) -> None:
    scanned = gemma_doctor.scan(write_file(tmp_path / "model-00001-of-00002.safetensors", "a"))
    assert (scanned.coverage, exit_code(scanned)) == (Coverage(1, 1), 0)


def test_what_the_index_promises_and_no_file_holds_is_left_out_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path, matrices("a", "b", "c", "d"), shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    scanned = gemma_doctor.scan(folder)
    assert [skip.tensor for skip in scanned.coverage.skipped] == ["c", "d"]
    assert (scanned.coverage.expected, exit_code(scanned, "never")) == (4, 2)
    part = gemma_doctor.scan(folder, Options(include=("[abc]",)))
    assert [skip.tensor for skip in part.coverage.skipped] == ["c"]
    sound = gemma_doctor.scan(folder, Options(include=("[ab]",), select=("GD1",)))
    assert (sound.coverage, exit_code(sound)) == (Coverage(2, 2), 0)


# Exit codes


@pytest.mark.parametrize("worst", [None, "note", "warning", "error"])
@pytest.mark.parametrize("fail_on", FAIL_ON)
def test_the_exit_code(worst: Severity | None, fail_on: FailOn) -> None:
    weight = {"error": 3, "warning": 2, "note": 1, None: 0, "never": 9}
    made = report([] if worst is None else [finding(severity="note"), finding(severity=worst)])
    assert exit_code(made, fail_on) == (1 if worst and weight[worst] >= weight[fail_on] else 0)
    partly = replace(made, coverage=Coverage(made.coverage.measured + 1, made.coverage.measured, (Skipped("x", "y"),)))
    assert exit_code(partly, fail_on) == 2
    assert exit_code(replace(made, coverage=Coverage(0, 0)), fail_on) == 2


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        (Options(), {"GD101", "GD102", "GD103"}),
        (Options(select=("GD101",)), {"GD101"}),
        (Options(select=("GD1",), ignore=("GD102", "GD103")), {"GD101"}),
        (Options(ignore=("GD1",)), set()),
        (Options(target_dtype="bfloat16"), {"GD101"}),
    ],
)
def test_rules_are_chosen(tmp_path: Path, options: Options, rules: set[str]) -> None:
    sick = plant(matrices("a", "b", "c"), "a", np.inf)
    scanned = gemma_doctor.scan(write(tmp_path, plant(plant(sick, "b", 1e5), "c", 5e4)), options)
    assert {finding.rule for finding in scanned.findings} == rules
    assert exit_code(scanned) == int(bool(rules & {"GD101", "GD102"}))


def test_an_unknown_rule_is_an_error_before_any_file_is_read() -> None:
    with pytest.raises(UsageError, match="GD999"):
        gemma_doctor.scan("nowhere", Options(select=("GD999",)))


@pytest.mark.parametrize("family", ["gemma3-multimodal", "gemma3n"])
def test_the_number_of_threads_changes_nothing(tmp_path: Path, family: str) -> None:
    config = {**CONFIGS[family], "dtype": "float16"}
    folder = write(tmp_path, in_bfloat16(healthy(config)), config, shards=4)
    reports = [replace(gemma_doctor.scan(folder, Options(jobs=jobs)), seconds=0) for jobs in (1, 2, 7, None)]
    assert reports[0] == reports[1] == reports[2] == reports[3]
    assert "GD203" in {finding.rule for finding in reports[0].findings}


# What scripts in use get wrong


def test_a_nan_in_bfloat16_is_found(tmp_path: Path) -> None:
    """A test for ``dtype in (float16, float32)`` passes over it."""
    scanned = gemma_doctor.scan(write(tmp_path, {"a.weight": bfloat16([[1.0, np.nan], [2.0, 3.0]])}))
    assert found(scanned) == [("GD101", "error", "a.weight")]
    assert (scanned.tensors[0].stats.nan, exit_code(scanned)) == (1, 1)


@pytest.mark.parametrize(
    ("dtype", "data", "figures"),
    [("F8_E4M3", "7e7f38b8", (448.0, 1, 0)), ("F8_E5M2", "7b7c7d3c", (57344.0, 1, 1))],
)
def test_float8_is_measured(tmp_path: Path, dtype: str, data: str, figures: tuple[float, int, int]) -> None:
    scanned = gemma_doctor.scan(write(tmp_path, {"a.weight": Raw(dtype, (2, 2), bytes.fromhex(data))}))
    stats = scanned.tensors[0].stats
    assert (stats.absmax, stats.nan, stats.inf) == figures
    assert ("GD101", "error", "a.weight") in found(scanned)
    assert (scanned.coverage, exit_code(scanned)) == (Coverage(1, 1), 1)


BROKEN: Mapping[str, bytes] = {
    "empty": b"",
    "no header": b"\x10\0\0\0\0\0\0\0{",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "a zip": b"PK\3\4" + bytes(60),
    "a pickle": b"\x80\4\x95" + bytes(60),
    "cut short": content_file({"a": ("F32", (2,), bytes(8))})[:-1],
    "too long": content_file({"a": ("F32", (2,), bytes(8))}) + b"\0",
    "nothing in it": content_file({}),
    "skipped": content_file({"a": ("F4", (2,), b"\0")}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_never_exits_with_0(tmp_path: Path, kind: str) -> None:
    """Not even where no finding shall fail, or no rule that could report it is on."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(BROKEN[kind])
    for options in ([], ["--fail-on", "never"], ["--select", "GD101"], ["--include", "a"], ["--quiet", "--json", "-"]):
        done = call("scan", path, *options)
        assert (done.code, "Traceback" in done.err) == (2, False)
