"""``gemma-doctor scan A B C``: a report for each, a summary, documents that hold all or one, the worst exit code."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import numpy as np
import pytest
from checkpoints import write
from command import call, run

from gemma_doctor.cli.several import short_names
from gemma_doctor.reports.machine import from_json, to_dict

SCHEMA = json.loads((files("gemma_doctor") / "report.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the current folder: ``sound``, ``large`` (a warning), ``sick`` (an error), and a cut file ``cut``."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"sound": 1.0, "large": 40000.0, "sick": np.nan, "cut": 1.0}.items():
        weight = np.ones((8, 8), np.float32)
        weight[3, 3] = value
        write(tmp_path / name, {"a.weight": weight})
    file = next((tmp_path / "cut").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["sound", "large"], 0),
        (["sound", "large", "--fail-on", "warning"], 1),
        (["sick", "sound"], 1),
        (["cut", "sound"], 2),
        (["absent", "sick", "sound"], 2),
        (["sound", "absent", "--fail-on", "never"], 2),
        (["sound", "sick", "--fail-on", "never"], 0),
    ],
)
def test_the_exit_code_is_the_worst(arguments: list[str], code: int) -> None:
    assert call("scan", *arguments).code == code


def test_a_report_for_each_and_a_table_in_a_process_of_its_own() -> None:
    done = run("scan", "sound", "absent", "sick")
    assert done.code == 2
    assert done.err.startswith("gemma-doctor: absent: no such file or folder.")
    assert done.err.count("\n") == 1
    assert [line for line in done.out.splitlines() if line.startswith("==")] == ["== sound", "== absent", "== sick"]
    table = [line.split() for line in done.out[done.out.index("\n3 sources: ") :].splitlines()[2:]]
    assert [row[:-1] for row in table] == [
        ["source", "verdict", "errors", "warnings", "notes", "bytes"],
        ["sound", "Healthy", "0", "0", "0", "256", "B"],
        ["absent", "Could", "not", "tell", "0", "0", "0", "0", "B"],
        ["sick", "Sick", "1", "0", "0", "256", "B"],
    ]


def test_quiet_says_less() -> None:
    whole, brief = (call("scan", "sound", "sick", *more).out for more in ((), ("--quiet",)))
    assert len(brief) < len(whole)
    assert "2 sources: " in brief
    assert "== sick" in brief


def test_json_is_a_list_of_reports_that_obey_the_schema() -> None:
    done = call("scan", "sound", "absent", "sick", "--json", "-")
    reports = json.loads(done.out)
    assert [report["source"]["uri"] for report in reports] == ["sound", "absent", "sick"]
    assert [report["complete"] for report in reports] == [True, False, True]
    for report in reports:
        jsonschema.validate(report, SCHEMA)
        assert to_dict(from_json(json.dumps(report))) == report
    (skipped,) = reports[1]["coverage"]["skipped"]
    assert skipped["tensor"] == "*"
    assert "no such file or folder" in skipped["reason"]


def test_one_source_is_no_list() -> None:
    assert json.loads(call("scan", "sound", "--json", "-").out)["complete"]


def test_sarif_has_a_run_and_junit_a_suite_for_each() -> None:
    assert call("scan", "sick", "absent", "sound", "--sarif", "all.sarif", "--junit", "all.xml").code == 2
    runs = json.loads(Path("all.sarif").read_text(encoding="utf-8"))["runs"]
    assert [one["automationDetails"]["id"] for one in runs] == [
        f"gemma-doctor/{n}/" for n in ("sick", "absent", "sound")
    ]
    assert [len(one["results"]) for one in runs] == [1, 0, 0]
    suites = ET.parse("all.xml").getroot()  # noqa: S314  # made by this program
    assert [(one.get("name"), one.get("failures"), one.get("errors")) for one in suites] == [
        ("gemma-doctor: sick", "1", "0"),
        ("gemma-doctor: absent", "0", "1"),
        ("gemma-doctor: sound", "0", "0"),
    ]


def test_markdown_holds_all_in_their_order() -> None:
    call("scan", "sick", "sound", "--markdown", "all.md")
    text = Path("all.md").read_text(encoding="utf-8")
    assert -1 < text.index("### gemma-doctor: Sick") < text.index("### gemma-doctor: Healthy")


def test_a_path_with_name_is_written_for_each() -> None:
    outputs = ["--html", "{name}.html", "--plot", "{name}.svg", "--json", "{name}.json", "--markdown", "all.md"]
    assert call("scan", "sound", "sick/", "absent", "--quiet", *outputs).code == 2
    for name in ("sound", "sick", "absent"):
        assert all(Path(f"{name}{suffix}").stat().st_size for suffix in (".html", ".svg", ".json"))
    assert json.loads(Path("sick.json").read_text(encoding="utf-8"))["source"]["uri"] == "sick/"
    assert Path("all.md").exists()


def test_a_path_with_name_holds_for_one_source_too() -> None:
    call("scan", "sound", "--json", "report-{name}.json")
    assert Path("report-sound.json").exists()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (["--html", "all.html"], "--html all.html: one file cannot show 2 sources; put {name} in its name"),
        (["--plot", "all.svg"], "--plot all.svg: one file cannot show 2 sources; put {name} in its name"),
        (["--write-baseline", "known.json"], "--write-baseline is of one SOURCE: scan them one by one"),
    ],
)
def test_what_shows_one_source_only_is_refused_before_the_work(output: list[str], words: str) -> None:
    done = call("scan", "sound", "sick", *output)
    assert (done.code, done.out, done.err) == (2, "", f"gemma-doctor: {words}\n")


def test_settings_of_one_source_hold_for_it_alone() -> None:
    Path("sick/gemma-doctor.toml").write_text('ignore = ["GD101"]\n', encoding="utf-8")
    assert call("scan", "sick", "sound").code == 0
    assert call("scan", "sick", "large", "--fail-on", "warning").code == 1


def test_short_names_are_different() -> None:
    assert short_names(["a/x", "b/x.safetensors", "x-2", "x/", "/"]) == ["x", "x-2", "x-2-2", "x-3", "root"]


def test_a_step_summary_has_each_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    call("scan", "sick", "sound")
    assert Path("summary.md").read_text(encoding="utf-8").count("### gemma-doctor: ") == 2
