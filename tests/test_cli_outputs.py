"""Documents of a scan and a repair: each beside the others, alone on standard output, and in a GitHub workflow."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from checkpoints import Array, write
from command import Done, call

from gemma_doctor import doctor
from gemma_doctor.cli.anchors import find_anchor
from gemma_doctor.cli.groups import grouped
from gemma_doctor.cli.options import Verdict
from gemma_doctor.cli.outputs import Documents, Outputs
from gemma_doctor.errors import UsageError
from gemma_doctor.reports import documents

FIRST_LINES: dict[str, str] = {
    "--json": "{",
    "--html": "<!doctype html>",
    "--markdown": "### gemma-doctor: Sick",
    "--sarif": "{",
    "--junit": '<?xml version="1.0" encoding="UTF-8"?>',
}


def sick() -> dict[str, Array]:
    """Two matrices, one with a value that float16 cannot hold."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0, 0.1, (16, 16)).astype(np.float32) for name in ("a.weight", "b.weight")}
    tensors["a.weight"][3, 5] = 70000
    return tensors


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; it holds the sick checkpoint ``model``, in two shards."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "model", sick(), {"model_type": "other"}, shards=2)
    return tmp_path


@pytest.fixture
def on_github(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as a step of a workflow; the path is that of the step's summary."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(work))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(work / "summary.md"))
    return work / "summary.md"


@pytest.mark.usefixtures("work")
def test_a_scan_writes_every_document_and_the_terminal_s_report() -> None:
    paths = {option: f"report{option.replace('--', '.')}" for option in FIRST_LINES}
    done = call("scan", "model", *[word for pair in paths.items() for word in pair], "--plot", "weights.svg")
    assert (done.code, done.err) == (1, "")
    assert done.out.startswith("Sick: 1 error. ")
    for option, path in paths.items():
        assert Path(path).read_text(encoding="utf-8").splitlines()[0].lower() == FIRST_LINES[option].lower()
    assert "<svg" in Path("weights.svg").read_text(encoding="utf-8")


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("option", FIRST_LINES)
def test_a_document_has_standard_output_for_itself(option: str) -> None:
    done = call("scan", "model", option, "-", "--plot", "weights.png")
    assert (done.code, done.err) == (1, "")
    assert done.out.splitlines()[0].lower() == FIRST_LINES[option].lower()
    assert "\n  gemma-doctor rule GD102" not in done.out
    assert Path("weights.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("command", [("scan", "model"), ("repair", "model", "--dry-run")])
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--json", "-", "--sarif", "-"], "cannot both go to standard output"),
        (["--html", "a.html", "--markdown", "./a.html"], "--html and --markdown cannot both go to ./a.html"),
        (["--sarif", "missing/a.sarif"], "missing/a.sarif cannot be written: its folder is missing"),
        (["--junit", "model"], "model cannot be written: it is a folder"),
        (["--markdown", "x.safetensors"], "x.safetensors is named like a tensor file"),
        (["--plot", "weights.gif"], "weights.gif"),
        (["--plot", "-"], "-"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_scan(
    command: tuple[str, ...], options: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "scan", pytest.fail)
    done = call(*command, *options)
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err


@pytest.mark.usefixtures("work")
def test_sarif_points_at_the_line_of_the_index_and_names_the_applied_rules() -> None:
    done = call("scan", "model", "--select", "GD1", "--sarif", "-")
    (run,) = json.loads(done.out)["runs"]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "model/model.safetensors.index.json"
    index = Path("model/model.safetensors.index.json").read_text(encoding="utf-8").splitlines()
    assert '"a.weight"' in index[place["region"]["startLine"] - 1]
    assert {rule["id"][:3] for rule in run["tool"]["driver"]["rules"]} == {"GD1"}


@pytest.mark.usefixtures("work")
def test_junit_fails_where_the_scan_does() -> None:
    suite = ET.fromstring(call("scan", "model", "--junit", "-").out)[0]  # noqa: S314  # made by this program
    assert suite.get("failures") == "1"
    suite = ET.fromstring(call("scan", "model", "--junit", "-", "--fail-on", "never").out)[0]  # noqa: S314
    assert suite.get("failures") == "0"


@pytest.mark.usefixtures("work")
def test_a_repair_writes_the_scan_before_it_and_its_plan() -> None:
    done = call("repair", "model", "--unsafe", "--output", "mended", "--markdown", "r.md", "--html", "r.html")
    assert done.code == 0
    assert done.out.startswith("Plan: 1 edit for GD102.")
    text = Path("r.md").read_text(encoding="utf-8")
    assert text.startswith("### gemma-doctor: Sick\n")
    assert "**Plan: 1 edit**\n\n| pass | exactness | edits | for |\n" in text
    assert "| `clamp-overflow` | lossy | 1 | `GD102` |\n" in text
    assert "clamp-overflow" in Path("r.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("work")
def test_a_repair_s_document_on_standard_output_is_alone() -> None:
    done = call("repair", "model", "--dry-run", "--sarif", "-")
    assert json.loads(done.out)["version"] == "2.1.0"
    assert (done.code, done.err) == (1, "")


@pytest.mark.usefixtures("work")
def test_what_a_plan_leaves_is_said() -> None:
    done = call("repair", "model", "--dry-run", "--markdown", "-")
    assert "**Plan: 0 edits**\n\n- Left as it is: GD102: " in done.out


@pytest.mark.usefixtures("work")
def test_a_saved_plan_scans_nothing_and_so_has_no_documents() -> None:
    assert call("repair", "model", "--unsafe", "--dry-run", "--save-plan", "plan.json").code == 0
    done = call("repair", "model", "--plan", "plan.json", "--dry-run", "--html", "r.html")
    assert (done.code, done.out) == (2, "")
    assert "leave out --html" in done.err


def commands_in(done: Done) -> list[str]:
    """The lines that a runner would take for commands: those outside of what it was told to pass over."""
    lines, stopped = [], ""
    for line in done.out.splitlines():
        said = line.strip()
        if stopped:
            stopped = "" if said == f"::{stopped}::" else stopped
        elif said.startswith("::stop-commands::"):
            stopped = said.removeprefix("::stop-commands::")
            assert len(stopped) == 32
        elif said.startswith("::") or "##[" in said:
            lines.append(line)
    assert stopped == ""
    return lines


def test_in_a_workflow_findings_are_annotations_and_the_summary_is_markdown(on_github: Path) -> None:
    done = call("scan", "model")
    assert (done.code, done.err) == (1, "")
    (annotation,) = commands_in(done)
    assert re.match(r"::error file=model/model\.safetensors\.index\.json,line=[1-9]+,title=GD102 ", annotation)
    assert on_github.read_text(encoding="utf-8").startswith("### gemma-doctor: Sick\n")
    call("scan", "model")
    assert on_github.read_text(encoding="utf-8").count("### gemma-doctor") == 2


def test_in_a_workflow_a_document_is_alone_all_the_same(on_github: Path) -> None:
    done = call("scan", "model", "--json", "-")
    assert json.loads(done.out)["summary"]["errors"] == 1
    assert on_github.exists()
    assert "::" not in call("repair", "model", "--dry-run", "--save-plan", "-").out


@pytest.mark.parametrize("name", ["::error::forged", "  ::add-mask::x", "##[add-mask]x"])
@pytest.mark.usefixtures("on_github")
def test_in_a_workflow_a_tensor_s_name_is_no_command(work: Path, name: str) -> None:
    write(work / "forged", {name: sick()["a.weight"]})
    (annotation,) = commands_in(call("scan", "forged"))
    assert annotation.startswith("::error file=forged/")
    assert name in call("scan", "forged").out


@pytest.mark.usefixtures("on_github")
def test_in_a_workflow_a_repair_annotates_what_is_left() -> None:
    (annotation,) = commands_in(call("repair", "model", "--dry-run"))
    assert "GD102" in annotation
    assert commands_in(call("repair", "model", "--unsafe", "--dry-run")) == []


def test_a_summary_that_cannot_be_written_is_a_remark(on_github: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(on_github.parent / "missing" / "summary.md"))
    done = call("scan", "model")
    assert done.code == 1
    assert re.fullmatch(r"the step's summary .* cannot be written: No such file or directory\n", done.err)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(on_github))
    on_github.write_bytes(b"x" * (1 << 20))
    assert call("scan", "model").err.startswith("the step's summary has no room for the report: ")
    assert on_github.stat().st_size == 1 << 20


def test_the_anchor_is_the_index_the_config_or_the_file(work: Path) -> None:
    write(work / "single", sick(), {"model_type": "other"})
    write(work / "bare", sick())
    assert find_anchor("single").path == "single/config.json"
    assert find_anchor("single/model.safetensors").path == "single/config.json"
    assert find_anchor("bare").path == "bare/model.safetensors"
    assert find_anchor("model/model.safetensors.index.json").lines.keys() == {"a.weight", "b.weight"}
    assert find_anchor("owner/name").path == "owner/name"


def test_the_anchor_is_relative_to_the_workspace_and_absolute_outside(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "sub").mkdir()
    monkeypatch.chdir(work / "sub")
    assert find_anchor("../model").path == str(work / "model" / "model.safetensors.index.json")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(work))
    assert find_anchor("../model").path == "model/model.safetensors.index.json"


def test_an_index_that_cannot_be_read_has_no_lines(work: Path) -> None:
    index = work / "model" / "model.safetensors.index.json"
    index.write_bytes(b'{"weight_map": {\n"a\\x": "f",\n"b\\u0063": "f"}}')
    assert find_anchor("model").lines == {"bc": 3}
    index.write_bytes(b"\xff")
    assert find_anchor("model").lines == {}


def test_one_target_is_taken_once() -> None:
    with pytest.raises(UsageError, match="--json and --save-plan cannot both go to standard output"):
        Documents().check(json="-", save_plan="-")
    Outputs(json="-", html="a.html").check(save_plan="b.json")
    assert Outputs(json="-").taken()
    assert Documents().taken("-")
    assert not Documents(html="x").taken(None)


def test_records_become_single_options_and_records_again() -> None:
    seen: list[Verdict] = []

    @grouped
    def command(verdict: Verdict) -> None:
        seen.append(verdict)

    command(fail_on="note", config=None)
    assert seen == [Verdict("note", None)]
    assert list(command.__annotations__) == ["fail_on", "config"]


def test_outside_of_a_workflow_nothing_is_wrapped(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    documents.draw(lambda console: console.print("hello"))
    assert capsysbinary.readouterr().out == b"hello\n"
