"""SARIF 2.1.0: valid for any report, within GitHub's limits, and with fingerprints that stay."""

from __future__ import annotations

import gzip
import json
import lzma
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hostile import NAMES
from hypothesis import given, settings
from report_strategies import reports
from sample_reports import finding, report

from gemma_doctor import catalog
from gemma_doctor.records import Coverage, Report, Skipped, Suppressed
from gemma_doctor.reports.guide import Anchor, RulePage
from gemma_doctor.reports.sarif import to_sarif

DATA = Path(__file__).parent / "data" / "sarif-2.1.0-rtm.5.json.xz"
SCHEMA = json.loads(lzma.decompress(DATA.read_bytes()))
VALIDATOR = jsonschema.Draft4Validator(SCHEMA, format_checker=jsonschema.Draft4Validator.FORMAT_CHECKER)
INDEX = Anchor("models/a b/model.safetensors.index.json", {"a.weight": 7})
RULES = tuple(RulePage(rule.id, rule.name, rule.severity, catalog.page(rule)) for rule in catalog.RULES)


def run_of(original: Report, anchor: Anchor = INDEX) -> dict[str, Any]:
    """The only run of the report's log, which obeys the schema (thousands of results are not checked: that is slow)."""
    log = json.loads(to_sarif(original, anchor, RULES), parse_constant=pytest.fail)
    if len(log["runs"][0]["results"]) <= 100:
        VALIDATOR.validate(log)
    (run,) = log["runs"]
    assert isinstance(run, dict)
    return run


def test_the_schema_is_the_published_one_and_refuses_a_wrong_level() -> None:
    assert SCHEMA["title"] == "Static Analysis Results Format (SARIF) Version 2.1.0-rtm.5 JSON Schema"
    log = json.loads(to_sarif(report([finding()]), INDEX))
    log["runs"][0]["results"][0]["level"] = "fatal"
    assert not VALIDATOR.is_valid(log)


@settings(max_examples=25)  # the schema is large, and checking against it slow
@given(reports)
def test_any_report_is_valid(original: Report) -> None:
    run = run_of(original)
    assert len(run["results"]) == len(original.findings)
    indices = [run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] for result in run["results"]]
    assert indices == [result["ruleId"] for result in run["results"]]


def test_a_finding_is_a_result_at_its_line_of_the_index() -> None:
    (result,) = run_of(report([finding()]))["results"]
    assert result["ruleId"] == "GD102"
    assert result["level"] == "error"
    assert result["message"]["text"] == "a.weight: 3 of 64 elements become inf in float16."
    (location,) = result["locations"]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "models/a%20b/model.safetensors.index.json", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 7},
    }
    assert location["logicalLocations"] == [{"fullyQualifiedName": "a.weight", "kind": "resource"}]
    assert result["properties"]["evidence"] == {"measure": 3, "threshold": None}
    assert result["properties"]["repair"] == "clamp-overflow"


def test_what_the_anchor_does_not_name_is_on_its_first_line() -> None:
    results = run_of(report([finding(tensor="b"), finding(tensor=None)]))["results"]
    regions = [result["locations"][0]["physicalLocation"]["region"] for result in results]
    assert regions == [{"startLine": 1}, {"startLine": 1}]
    assert "logicalLocations" not in results[1]["locations"][0]


def test_a_file_outside_the_repository_is_an_absolute_uri() -> None:
    (result,) = run_of(report([finding()]), Anchor("/data/x y/config.json"))["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": "file:///data/x%20y/config.json"}


def fingerprints(original: Report, anchor: Anchor = INDEX) -> list[str]:
    """The fingerprint of each result."""
    return [result["partialFingerprints"]["primaryLocationLineHash"] for result in run_of(original, anchor)["results"]]


def test_fingerprints_depend_on_rule_and_tensor_only() -> None:
    first = fingerprints(report([finding(), finding("GD101"), finding(tensor="b")]))
    assert len({*first}) == 3
    others = [
        finding(tensor="b", message="another", severity="note", measure=8),
        finding(message="new"),
        finding("GD101"),
    ]
    assert sorted(fingerprints(report(others), Anchor("elsewhere.json"))) == sorted(first)


def test_several_findings_of_one_rule_on_one_tensor_are_told_apart() -> None:
    found = fingerprints(report([finding(message="one"), finding(message="two")]))
    assert [item.partition(":")[2] for item in found] == ["1", "2"]
    assert len({item.partition(":")[0] for item in found}) == 1


def many(layers: int, kinds: int) -> Report:
    """A report with a finding for each kind of tensor of each layer."""
    names = [f"model.layers.{layer}.kind_{kind}.weight" for layer in range(layers) for kind in range(kinds)]
    return report([finding("GD104", "warning", name) for name in names] + [finding("GD002", tensor=None)])


def test_thousands_of_findings_become_a_result_for_each_family() -> None:
    results = run_of(many(100, 12))["results"]
    assert len(results) == 13
    assert results[0]["ruleId"] == "GD002"
    assert sum(result["properties"]["findings"] for result in results) == 1201
    family = results[1]
    assert family["message"]["text"].startswith("model.layers.{0..99}.kind_0.weight (100 findings). The first: 3 of 64")
    assert len(family["locations"]) == 20


def test_a_family_keeps_its_fingerprint_when_a_member_is_mended() -> None:
    before, after = many(100, 12), many(99, 12)
    assert fingerprints(before) == fingerprints(after)


def test_below_a_thousand_every_finding_is_a_result() -> None:
    assert len(run_of(many(83, 12))["results"]) == 997


def test_github_s_limits_hold_for_twenty_thousand_tensors_without_a_pattern() -> None:
    names = [f"t{number}x.{'y' * 300}" for number in range(20_000)]
    text = to_sarif(report([finding(tensor=name, message="z" * 5000) for name in names]), INDEX, RULES)
    (run,) = json.loads(text)["runs"]
    assert len(run["results"]) == 5000
    assert max(len(result["locations"]) for result in run["results"]) <= 100
    assert len(gzip.compress(text.encode())) < 10_000_000
    notes = [note["message"]["text"] for note in run["invocations"][0]["toolExecutionNotifications"]]
    assert notes == ["15,000 results are left out: GitHub shows 5,000"]


def test_the_gravest_come_first_where_not_all_have_room() -> None:
    light = [finding("GD004", "note", f"t{number}x") for number in range(6000)]
    results = run_of(report([*light, finding("GD101", tensor="sick")]))["results"]
    assert (len(results), results[0]["ruleId"]) == (5000, "GD101")


def test_every_applied_rule_is_described_with_its_page() -> None:
    rules = run_of(report())["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.id for rule in catalog.RULES]
    conv = next(rule for rule in rules if rule["id"] == "GD104")
    assert conv["name"] == "fp16-conv-overflow-risk"
    assert conv["shortDescription"]["text"].startswith("a convolution ")
    assert "## How to mend" in conv["help"]["markdown"]
    assert conv["defaultConfiguration"] == {"level": "warning"}
    assert all(len(rule["properties"]["tags"]) <= 10 for rule in rules)
    levels = Counter(rule["properties"]["problem.severity"] for rule in rules)
    assert set(levels) == {"error", "warning", "recommendation"}


def test_a_rule_that_only_a_finding_names_is_described_by_it() -> None:
    run = run_of(report([finding("GD999", "note")]))
    (result,) = run["results"]
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "GD999"


def test_a_healthy_report_has_no_results_and_findings_set_aside_are_none() -> None:
    aside = replace(report(), suppressed=(Suppressed(finding(), "allow", "fine", "x.toml"),))
    run = run_of(aside)
    assert run["results"] == []
    assert run["properties"]["suppressed"] == 1
    assert run["invocations"] == [{"executionSuccessful": True, "toolExecutionNotifications": []}]


def test_an_incomplete_report_is_no_success_and_says_why() -> None:
    part = replace(report(), coverage=Coverage(3, 1, (Skipped("b", "dtype F3"), Skipped("c", "dtype F3"))))
    (invocation,) = run_of(part)["invocations"]
    assert invocation["executionSuccessful"] is False
    (note,) = invocation["toolExecutionNotifications"]
    assert note == {
        "level": "error",
        "message": {"text": "Not measured: 2 tensors, dtype F3; the first is b"},
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_stranger_s_name_is_neither_link_nor_placeholder(name: str) -> None:
    (result,) = run_of(report([finding(tensor=f"{name}.weight", message=f"{name} is 0.")]))["results"]
    text = result["message"]["text"]
    assert "](" not in text.replace("\\](", "")
    assert "{0}" not in text.replace("{{0}}", "")
    assert text.isprintable()
