"""``gemma-doctor scan``: exit codes, outputs, selection, settings, baselines and allow entries, on real files."""

from __future__ import annotations

import hashlib
import json
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from checkpoints import Array, write
from command import Terminal, call, run
from sample_reports import report

from gemma_doctor import doctor
from gemma_doctor.records import Report
from gemma_doctor.reports.machine import from_json

SCHEMA = json.loads((files("gemma_doctor") / "report.schema.json").read_text(encoding="utf-8"))


def sound() -> dict[str, Array]:
    """Two sound matrices."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.1, (16, 16)).astype(np.float32) for name in ("a.weight", "b.weight")}


def with_value(value: float, name: str = "a.weight") -> dict[str, Array]:
    """The same with one element replaced."""
    tensors = sound()
    tensors[name][3, 5] = value
    return tensors


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the checkpoint, beside the current folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "model"


def rules_found(*arguments: str | Path) -> dict[str, list[str]]:
    """Rule -> tensors of its findings, from the JSON on standard output."""
    done = call("scan", *arguments, "--json", "-")
    assert done.err == ""
    found: dict[str, list[str]] = {}
    for finding in json.loads(done.out)["findings"]:
        found.setdefault(finding["rule"], []).append(finding["tensor"])
    return found


@pytest.mark.parametrize(
    ("value", "options", "code"),
    [
        (0.5, [], 0),
        (0.5, ["--fail-on", "note"], 0),
        (np.nan, [], 1),
        (np.inf, [], 1),
        (70000.0, [], 1),
        (70000.0, ["--fail-on", "never"], 0),
        (70000.0, ["--target-dtype", "bfloat16"], 0),
        (70000.0, ["--ignore", "GD102"], 0),
        (70000.0, ["--exclude", "a.*"], 0),
        (40000.0, [], 0),
        (40000.0, ["--fail-on", "warning"], 1),
    ],
)
def test_the_exit_code_is_what_fail_on_makes_of_the_findings(
    model: Path, value: float, options: list[str], code: int
) -> None:
    write(model, with_value(value))
    assert call("scan", model, *options).code == code


def test_a_sick_checkpoint_in_a_process_of_its_own(model: Path) -> None:
    write(model, with_value(np.nan))
    done = run("scan", model / "model.safetensors")
    assert (done.code, done.err) == (1, "")
    assert done.out.startswith("Sick: 1 error. In float16: 1 weight NaN or inf.\n")
    assert "\nerror GD101 nonfinite-weight\n  a.weight\n      1 NaN" in done.out
    assert "\nMeasured 2 of 2 tensors: 512 parameters, 2.05 kB in " in done.out
    assert "\x1b" not in done.out


def test_what_could_not_be_measured_exits_with_2_and_says_why(model: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    model.mkdir()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    for options in ([], ["--fail-on", "never"], ["--quiet"]):
        done = call("scan", model, *options)
        assert done.code == 2
        assert done.out.startswith("Could not tell, no tensor was measured")
        assert "\nNot measured: 1 tensor, " in done.out


def test_a_truncated_file_exits_with_2(model: Path) -> None:
    write(model, sound())
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    done = call("scan", model, "--fail-on", "never")
    assert done.code == 2
    assert "error GD001 unreadable-shard" in done.out
    assert "config.json" not in done.out  # of what cannot be read, nothing else is worth a word
    assert "every number" not in done.out


def test_selecting_nothing_is_an_error(model: Path) -> None:
    write(model, sound())
    done = call("scan", model, "--include", "c.*")
    assert (done.code, done.out) == (2, "")


def test_json_on_standard_output_is_alone_and_obeys_the_schema(model: Path) -> None:
    write(model, with_value(np.nan))
    done = run("scan", model, "--json", "-")
    assert (done.code, done.err) == (1, "")
    document = json.loads(done.out)
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert document["source"]["uri"] == str(model)
    assert document["summary"]["errors"] == 1
    assert from_json(done.out).findings[0].tensor == "a.weight"


def test_json_in_a_file_leaves_the_terminal_report(model: Path) -> None:
    write(model, sound())
    done = call("scan", model, "--json", "report.json")
    assert done.out.startswith("Healthy. ")
    assert "--json" not in done.out
    assert json.loads(Path("report.json").read_text(encoding="utf-8"))["complete"] is True


def test_rules_are_chosen_by_id_or_prefix_repeated_or_with_commas(model: Path) -> None:
    write(model, {**with_value(np.nan), "c.weight": with_value(70000.0)["a.weight"]}, metadata={})
    assert sorted(rules_found(model)) == ["GD004", "GD101", "GD102"]
    assert sorted(rules_found(model, "--select", "GD1")) == ["GD101", "GD102"]
    assert sorted(rules_found(model, "--select", "GD101", "--select", "gd004")) == ["GD004", "GD101"]
    assert sorted(rules_found(model, "--select", "GD101,GD102", "--ignore", "GD10,GD2")) == ["GD101", "GD102"]
    assert sorted(rules_found(model, "--ignore", "GD101,GD0")) == ["GD102"]
    assert call("scan", model, "--select", "GD9").err.startswith("gemma-doctor: no rule has the id or prefix 'GD9'")


def test_tensors_are_chosen_by_globs(model: Path) -> None:
    write(model, {f"{name}.weight": with_value(np.nan)["a.weight"] for name in "abc"})
    assert rules_found(model, "--include", "a.*", "--include", "b*")["GD101"] == ["a.weight", "b.weight"]
    assert rules_found(model, "--exclude", "[ab].weight")["GD101"] == ["c.weight"]


def test_every_option_reaches_the_doctor(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, doctor.Options]] = []

    def scan(source: str, options: doctor.Options, _progress: object, **_more: object) -> Report:
        seen.append((source, options))
        return report()

    monkeypatch.setattr(doctor, "scan", scan)
    chosen = ["--select", "GD1", "--ignore", "GD2", "--include", "a*", "--include", "b", "--exclude", "c"]
    assert call("scan", model, *chosen, "--target-dtype", "bfloat16", "--loader", "vllm", "--jobs", "3").code == 0
    options = doctor.Options(("GD1",), ("GD2",), ("a*", "b"), ("c",), "bfloat16", "vllm", 3)
    assert seen == [(str(model), options)]


def test_quiet_is_the_verdict_and_the_findings(model: Path) -> None:
    write(model, with_value(np.nan))
    lines = call("scan", model, "--quiet").out.splitlines()
    assert lines[0].startswith("Sick: 1 error.")
    assert lines[1:4] == ["", "error GD101 nonfinite-weight", "  a.weight"]
    assert len(lines) == 5


def test_a_terminal_gets_colours_and_a_progress_bar_unless_quiet(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    write(model, with_value(np.nan))
    loud = call("scan", model, stream=Terminal)
    assert "\x1b[1;31mSick\x1b[0m" in loud.out
    assert "scanning" in loud.err
    assert call("scan", model, "--quiet", stream=Terminal).err == ""
    assert call("scan", model).err == ""
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1mSick\x1b[0m" in call("scan", model, stream=Terminal).out


def test_the_next_commands_work(model: Path) -> None:
    write(model, with_value(np.nan))
    _, _, commands = call("scan", model).out.partition("\nNext:\n")
    for line in commands.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "gemma-doctor"
        assert call(*arguments).code == int(arguments[0] == "scan")


def settings(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def test_settings_beside_the_checkpoint_hold_and_are_announced(model: Path) -> None:
    write(model, with_value(np.nan))
    settings(model / "gemma-doctor.toml", 'fail-on = "never"\nignore = ["GD103"]')
    done = call("scan", model, "--quiet")
    assert done.code == 0
    assert done.err.startswith("settings of gemma-doctor.toml beside the checkpoint hold: ignore GD103; fail-on never")
    assert call("scan", model, "--fail-on", "error").code == 1


def test_a_given_config_and_the_command_line_win(model: Path) -> None:
    write(model, with_value(70000.0))
    settings(model / "gemma-doctor.toml", 'fail-on = "never"')
    settings(Path("strict.toml"), 'target-dtype = "bfloat16"\nselect = ["GD102"]')
    assert (call("scan", model).code, call("scan", model, "--config", "strict.toml").code) == (0, 0)
    assert call("scan", model, "--config", "strict.toml", "--target-dtype", "float16").code == 1
    assert call("scan", model, "--config", "strict.toml", "--target-dtype", "float16", "--select", "GD0").code == 0


def test_pyproject_of_the_current_folder_holds_in_silence(model: Path) -> None:
    write(model, with_value(np.nan))
    settings(Path("pyproject.toml"), '[tool.gemma-doctor]\nfail-on = "never"')
    done = call("scan", model)
    assert (done.code, done.err) == (0, "")


def test_ignored_tensors_are_counted_and_shown(model: Path) -> None:
    write(model, with_value(np.nan))
    settings(model / "gemma-doctor.toml", '[per-tensor-ignores]\n"a.*" = ["GD1"]')
    for options in ([], ["--quiet"]):
        done = call("scan", model, *options)
        assert done.code == 0
        assert done.out.startswith("Nothing new: 1 finding set aside. In float16: 1 weight NaN or inf.\n")
    assert (
        "Set aside: 1 finding, by per-tensor-ignores in gemma-doctor.toml beside the checkpoint."
        in call("scan", model).out
    )


def test_a_baseline_sets_aside_the_old_and_shows_the_new(model: Path) -> None:
    write(model, with_value(np.nan))
    assert call("scan", model, "--write-baseline", "known.json").code == 1
    assert call("scan", model, "--baseline", "known.json").code == 0

    write(model, {**with_value(np.nan), "b.weight": with_value(70000.0)["a.weight"]})
    done = call("scan", model, "--baseline", "known.json")
    assert done.code == 1
    assert done.out.startswith("Sick: 1 error, 1 finding set aside. ")
    assert "GD102" in done.out
    assert "GD101" not in done.out

    assert call("scan", model, "--baseline", "known.json", "--write-baseline", "known.json").code == 1
    assert call("scan", model, "--baseline", "known.json").code == 0

    write(model, sound())
    done = call("scan", model, "--baseline", "known.json")
    assert done.code == 0
    assert "Remark: 2 baseline entries in known.json no longer found: GD101 a.weight, GD102 b.weight;" in done.out
    assert "baseline entries" not in call("scan", model, "--baseline", "known.json", "--select", "GD2").out


def allow(sha256: str) -> str:
    return f'allow = [{{rule = "GD101", tensor = "a.weight", sha256 = "{sha256}", reason = "a padding row"}}]'


def test_an_allow_entry_holds_until_the_weights_change(model: Path) -> None:
    def digest(tensors: dict[str, Any]) -> str:
        return hashlib.sha256(tensors["a.weight"].tobytes()).hexdigest()

    first, second = with_value(np.nan), with_value(np.inf)
    write(model, first)
    settings(model / "gemma-doctor.toml", allow(digest(first)))
    document = json.loads(call("scan", model, "--json", "-").out)
    (aside,) = document["suppressed"]
    assert (aside["by"], aside["reason"]) == ("allow", "a padding row")
    assert document["findings"] == []

    write(model, second)
    done = call("scan", model)
    assert done.code == 1
    assert f"to accept these bytes, set its sha256 to {digest(second)}." in done.out

    settings(model / "gemma-doctor.toml", allow(digest(second)))
    assert call("scan", model).code == 0
