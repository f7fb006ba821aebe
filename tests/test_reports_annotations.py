"""Workflow commands: one line each, escaped, no more than GitHub shows, and nothing forged."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hostile import NAMES
from hypothesis import given
from report_strategies import reports
from sample_reports import finding, report

from gemma_doctor.records import Coverage, Report
from gemma_doctor.reports.annotations import MOST, to_annotations
from gemma_doctor.reports.guide import Anchor
from gemma_doctor.reports.names import safe_text

INDEX = Anchor("models/a,b:c/model.safetensors.index.json", {"a.weight": 7})
COMMAND = re.compile(
    r"::(?P<level>error|warning|notice) "
    r"file=(?P<file>[^,:]*),line=(?P<line>[0-9]+),title=(?P<title>[^,:]*)::(?P<said>.*)"
)


def parsed(text: str) -> list[dict[str, str]]:
    """The commands as GitHub's runner reads them (actions/runner: ActionCommand.TryParseV2)."""
    commands = []
    for line in text.splitlines():
        match = COMMAND.fullmatch(line)
        if match is None:
            assert re.fullmatch("and [0-9,]+ more findings?, which GitHub would not show", line)
            continue
        escapes = (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%"))
        values = match.groupdict()
        for key in values:
            for escaped, plain in escapes:
                values[key] = values[key].replace(escaped, plain)
        commands.append(values)
    return commands


def test_a_finding_is_a_command_at_its_line() -> None:
    text = to_annotations(report([finding(message="100 % lost: all, really")]), INDEX)
    assert text == (
        "::error file=models/a%2Cb%3Ac/model.safetensors.index.json,line=7,title=GD102 fp16-weight-overflow::"
        "a.weight: 100 %25 lost: all, really\n"
    )


def test_without_a_file_there_is_a_title_only() -> None:
    assert to_annotations(report([finding()])).startswith("::error title=GD102 fp16-weight-overflow::a.weight: 3 of")


def test_severities_become_github_s_levels() -> None:
    found = [finding("GD101"), finding("GD104", "warning"), finding("GD004", "note", None)]
    commands = parsed(to_annotations(report(found), INDEX))
    assert [command["level"] for command in commands] == ["error", "warning", "notice"]
    assert commands[2]["said"] == "model.safetensors: 3 of 64 elements become inf in float16."


def test_findings_that_say_the_same_are_one_command() -> None:
    layers = [finding(tensor=f"layers.{n}.{kind}") for n in range(9) for kind in "ab"]
    (command,) = parsed(to_annotations(report(layers), INDEX))
    assert command["said"] == "layers.{0..8}.a (9) and 9 more: 3 of 64 elements become inf in float16."


def test_what_github_would_not_show_is_counted_on_the_last_line() -> None:
    errors = [finding(tensor=f"t{n}", message=f"{'x' * n} is 0.") for n in range(25)]
    warnings = [finding("GD104", "warning", f"t{n}", f"{'x' * n} is 0.") for n in range(4)]
    text = to_annotations(report([*errors, *warnings]), INDEX)
    levels = [command["level"] for command in parsed(text)]
    assert levels == ["error"] * MOST + ["warning"] * 4
    assert text.splitlines()[-1] == "and 15 more findings, which GitHub would not show"


def test_an_incomplete_report_comes_first() -> None:
    errors = [finding(tensor=f"t{n}", message=f"{'x' * n} is 0.") for n in range(25)]
    commands = parsed(to_annotations(replace(report(errors), coverage=Coverage(3, 1)), INDEX))
    assert (commands[0]["title"], commands[0]["said"]) == (
        "gemma-doctor",
        "Could not tell, 2 of 3 tensors not measured",
    )
    assert len(commands) == MOST


def test_a_healthy_report_says_nothing() -> None:
    assert to_annotations(report(), INDEX) == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_stranger_s_name_forges_no_command_and_arrives_whole(name: str) -> None:
    found = finding(tensor=f"{name}.weight", message=f"{name} is 0.")
    (command,) = parsed(to_annotations(report([found]), INDEX))
    assert command["said"] == f"{safe_text(name)}.weight: {safe_text(name)} is 0."
    (command,) = parsed(to_annotations(report([replace(found, name=name)]), replace(INDEX, path=name)))
    assert (command["title"], command["file"]) == (f"GD102 {safe_text(name)}", safe_text(name))


@given(reports)
def test_any_report_has_at_most_ten_of_a_level(original: Report) -> None:
    levels = [command["level"] for command in parsed(to_annotations(original, INDEX))]
    assert all(levels.count(level) <= MOST for level in levels)
