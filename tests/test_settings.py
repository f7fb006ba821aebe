"""Settings files and baselines: which one holds, what it may say, and how a mistake in it is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sample_reports import finding, report

from gemma_doctor.errors import SettingsError
from gemma_doctor.inspect.suppression import Allow, Ignore, Known
from gemma_doctor.records import Suppressed
from gemma_doctor.settings import Settings, baseline_text, find, notice, read_baseline

DIGEST = "0123456789abcdef" * 4
EVERYTHING = f"""
select = ["GD1", "GD201"]
ignore = ["gd107"]
fail-on = "warning"
target-dtype = "bfloat16"
loader = "vllm"

[per-tensor-ignores]
"*.bias" = ["GD106", "GD102"]

[[allow]]
rule = "GD104"
tensor = "conv.weight"
sha256 = "{DIGEST.upper()}"
reason = " the encoder runs in float32 "
"""


def beside(folder: Path, text: str) -> Settings:
    """The settings of a file beside a checkpoint."""
    (folder / "gemma-doctor.toml").write_text(text, encoding="utf-8")
    return find(str(folder), None, folder)


def test_every_key_is_read(tmp_path: Path) -> None:
    origin = "gemma-doctor.toml beside the checkpoint"
    assert beside(tmp_path, EVERYTHING) == Settings(
        select=("GD1", "GD201"),
        ignore=("gd107",),
        fail_on="warning",
        target_dtype="bfloat16",
        loader="vllm",
        per_tensor_ignores=(Ignore("*.bias", ("GD102", "GD106"), origin),),
        allow=(Allow("GD104", "conv.weight", DIGEST, "the encoder runs in float32", origin),),
        origin=origin,
        beside=True,
    )


def test_rules_of_a_glob_may_be_prefixes_and_none(tmp_path: Path) -> None:
    (tmp_path / "gemma-doctor.toml").write_text('[per-tensor-ignores]\n"a" = ["GD00"]\n"b" = []\n"c" = ["ALL"]\n')
    ignores = {ignore.tensors: ignore.rules for ignore in find(str(tmp_path), None, tmp_path).per_tensor_ignores}
    assert ignores["a"] == ("GD001", "GD002", "GD003", "GD004")
    assert ignores["b"] == ()
    assert {"GD001", "GD101", "GD210"} <= set(ignores["c"])


def test_the_first_file_that_exists_holds_alone(tmp_path: Path) -> None:
    work = tmp_path / "project" / "sub"
    model = tmp_path / "model"
    work.mkdir(parents=True)
    model.mkdir()
    shard = model / "model.safetensors"
    shard.touch()
    (tmp_path / "project" / "pyproject.toml").write_text('[tool.gemma-doctor]\nfail-on = "note"\nloader = "vllm"')
    (work / "pyproject.toml").write_text("[tool.other]\n")

    from_project = find(str(shard), None, work)
    assert (from_project.fail_on, from_project.loader, from_project.beside) == ("note", "vllm", False)
    assert from_project.origin == str(tmp_path / "project" / "pyproject.toml")

    (model / "gemma-doctor.toml").write_text('fail-on = "never"')
    for source in (shard, model):
        chosen = find(str(source), None, work)
        assert (chosen.fail_on, chosen.loader, chosen.beside) == ("never", None, True)

    given = tmp_path / "mine.toml"
    given.write_text('fail-on = "warning"')
    assert find(str(shard), given, work) == Settings(fail_on="warning", origin=str(given))
    assert find(str(shard), tmp_path / "project" / "pyproject.toml", tmp_path).fail_on == "note"


def test_no_file_no_settings(tmp_path: Path) -> None:
    assert find("google/gemma-3n-E2B-it", None, tmp_path) == Settings()


def test_a_repo_id_has_no_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gemma-doctor.toml").write_text('fail-on = "never"')
    monkeypatch.chdir(tmp_path)
    assert find("model-that-is-not-here", None, tmp_path) == Settings()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("select = [", "not TOML: "),
        ('slect = ["GD1"]', "unknown key 'slect'; did you mean 'select'?"),
        ('select = "GD1"', "select: expected a list, found 'GD1'"),
        ("select = [1]", "select[0]: expected a string, found 1"),
        ('ignore = ["GD1", "GD1O4"]', "ignore[1]: no rule has the id or prefix 'GD1O4'; did you mean GD104"),
        ('fail-on = "warnings"', "fail-on: 'warnings' is not known; did you mean 'warning'?"),
        ("fail-on = 3", "fail-on: 3 is not known; known are error, never, note, warning"),
        ('target-dtype = "fp16"', "target-dtype: 'fp16' is not known; known are bfloat16, float16"),
        ('loader = "hf"', "loader: 'hf' is not known; known are llama.cpp, transformers"),
        ('per-tensor-ignores = ["GD1"]', "per-tensor-ignores: expected a table, found ['GD1']"),
        ('per-tensor-ignores = {"*" = ["GD9"]}', "per-tensor-ignores.*[0]: no rule has the id or prefix 'GD9'"),
        ("allow = 1", "allow: expected a list, found 1"),
        ('allow = [{rule = "GD101"}]', "allow[0]: missing 'sha256'"),
        ("allow = [{because = 1}]", "allow[0]: unknown key 'because'"),
        (EVERYTHING.replace("GD104", "GD1"), "allow[0].rule: no rule 'GD1'"),
        (EVERYTHING.replace("reason", "#"), "allow[0]: missing 'reason'"),
        (EVERYTHING.replace(" the encoder runs in float32 ", " "), "allow[0].reason: expected a reason"),
        (EVERYTHING.replace("tensor =", "#"), "allow[0]: missing 'tensor'"),
        (EVERYTHING.replace(DIGEST.upper(), "12"), "allow[0].sha256: expected 64 hexadecimal digits"),
        pytest.param("x" * (17 << 20), "is larger than 16 MiB", id="17 MiB"),
        pytest.param("a = " + "[" * 100_000, "not TOML: ", id="deep"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as error:
        beside(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'gemma-doctor.toml'}")
    assert complaint in str(error.value)


def test_a_mistake_in_pyproject_is_named_with_its_table(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text("[tool.gemma-doctor]\nfail_on = 1")
    with pytest.raises(SettingsError) as error:
        find("x", None, tmp_path)
    assert str(error.value) == f"{project}: tool.gemma-doctor: unknown key 'fail_on'; did you mean 'fail-on'?"


def test_a_given_file_must_be_there_be_text_and_have_the_table(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"mine\.toml cannot be read: No such file"):
        find("x", tmp_path / "mine.toml", tmp_path)
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"mine\.toml cannot be read: 'utf-8' codec"):
        find("x", tmp_path / "mine.toml", tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]")
    with pytest.raises(SettingsError, match=r"pyproject\.toml has no \[tool\.gemma-doctor\] table"):
        find("x", tmp_path / "pyproject.toml", tmp_path)


def test_what_a_stranger_may_have_set_is_announced(tmp_path: Path) -> None:
    assert notice(beside(tmp_path, EVERYTHING)) == (
        "settings of gemma-doctor.toml beside the checkpoint hold: select GD1, GD201; ignore gd107; fail-on warning; "
        "target-dtype bfloat16; loader vllm; per-tensor-ignores 1; allow 1 (--config FILE reads another file instead)"
    )
    assert notice(beside(tmp_path, "")) == ""
    assert notice(replace(beside(tmp_path, EVERYTHING), beside=False)) == ""


def test_a_baseline_is_sorted_and_has_a_line_for_each_finding(tmp_path: Path) -> None:
    found = [finding("GD104", "warning", tensor="b"), finding("GD101"), finding("GD002", tensor=None), finding("GD101")]
    text = baseline_text(report(found))
    assert text == (
        "{\n"
        '  "schema_version": 1,\n'
        '  "findings": [\n'
        '    {"rule": "GD002", "severity": "error", "tensor": null, "file": "model.safetensors"},\n'
        '    {"rule": "GD101", "severity": "error", "tensor": "a.weight", "file": "model.safetensors"},\n'
        '    {"rule": "GD101", "severity": "error", "tensor": "a.weight", "file": "model.safetensors"},\n'
        '    {"rule": "GD104", "severity": "warning", "tensor": "b", "file": "model.safetensors"}\n'
        "  ]\n"
        "}\n"
    )
    path = tmp_path / "known.json"
    path.write_text(text)
    baseline = read_baseline(path)
    assert baseline.origin == str(path)
    assert sorted(baseline.entries, key=str) == sorted(map(Known.of, found), key=str)


def test_a_baseline_keeps_what_it_set_aside_and_nothing_else_that_was(tmp_path: Path) -> None:
    held = (Suppressed(finding("GD101"), "baseline"), Suppressed(finding("GD102"), "allow", "fine"))
    text = baseline_text(replace(report(), suppressed=held))
    assert [entry["rule"] for entry in json.loads(text)["findings"]] == ["GD101"]
    path = tmp_path / "known.json"
    path.write_text(baseline_text(report()))
    assert read_baseline(path).entries == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"schema_version": 1,\n  "findings": [}', "line 2, column 16: "),
        pytest.param("[" * 100_000, "recursion", id="deep"),
        pytest.param("1" * 5000, "Exceeds the limit", id="long number"),
        ("[]", "expected a table, found []"),
        ('{"findings": []}', "missing 'schema_version'"),
        ('{"schema_version": 2, "findings": []}', "schema version 2; this gemma-doctor reads version 1"),
        ('{"schema_version": 1, "findings": [], "x": 1}', "unknown key 'x'"),
        ('{"schema_version": 1, "findings": [{"rule": "GD101"}]}', "findings[0]: missing 'severity'"),
        (
            '{"schema_version": 1, "findings": [{"rule": 1, "severity": "error", "tensor": null, "file": null}]}',
            "findings[0].rule: expected a string, found 1",
        ),
        (
            '{"schema_version": 1, "findings": [{"rule": "GD101", "severity": "bad", "tensor": null, "file": null}]}',
            "findings[0].severity: 'bad' is not known",
        ),
        (
            '{"schema_version": 1, "findings": [{"rule": "a", "severity": "note", "tensor": 0, "file": null}]}',
            "findings[0].tensor: expected a string, found 0",
        ),
    ],
)
def test_a_broken_baseline_is_refused_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "known.json"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        read_baseline(path)
    assert str(error.value).startswith(f"{path} is not a baseline that can be read: ")
    assert complaint in str(error.value)
