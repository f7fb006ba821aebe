"""JUnit XML: valid against Jenkins' schema for any report, a case for each rule, and what could not be told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import xmlschema
from hostile import NAMES
from hypothesis import given, settings
from report_strategies import reports
from sample_reports import finding, report

from gemma_doctor.choices import FAIL_ON, FailOn
from gemma_doctor.records import Coverage, Report, Skipped
from gemma_doctor.reports.guide import RulePage
from gemma_doctor.reports.junit import to_junit
from gemma_doctor.reports.names import safe_text

SCHEMA = xmlschema.XMLSchema(Path(__file__).parent / "data" / "junit-10.xsd")
RULES = tuple(
    RulePage(rule, name, "error", f"# {rule} {name}: what it is\n")
    for rule, name in (("GD101", "nonfinite-weight"), ("GD102", "fp16-weight-overflow"), ("GD104", "conv-risk"))
)
SICK = report([finding("GD102", tensor=f"layers.{n}.a") for n in range(3)] + [finding("GD104", "warning", "conv")])


def suite_of(original: Report, fail_on: FailOn = "error") -> ET.Element:
    """The test suite of the document, which obeys the schema."""
    text = to_junit(original, RULES, fail_on)
    SCHEMA.validate(text.partition("\n")[2])
    (suite,) = ET.fromstring(text)  # noqa: S314  # it was made in this process
    return suite


def case_of(suite: ET.Element, rule: str) -> ET.Element:
    """The case of a rule."""
    return next(case for case in suite.iter("testcase") if case.get("classname") == f"gemma-doctor.{rule}")


def outcome(case: ET.Element) -> list[str]:
    """The tags of what a case holds."""
    return [child.tag for child in case]


@settings(max_examples=50)
@given(reports)
def test_any_report_is_valid_and_its_counts_add_up(original: Report) -> None:
    suite = suite_of(original, "note")
    cases = list(suite.iter("testcase"))
    assert suite.get("tests") == str(len(cases))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert suite.get(attribute) == str(sum(case.find(tag) is not None for case in cases))
    assert suite.get("errors") == str(int(not original.complete))
    names = [(case.get("classname"), case.get("name")) for case in cases]
    assert len({*names}) == len(names)


def test_a_rule_with_findings_fails_and_the_others_pass() -> None:
    suite = suite_of(SICK)
    assert outcome(case_of(suite, "GD101")) == []
    (failure,) = case_of(suite, "GD102")
    assert (failure.get("type"), failure.get("message")) == ("error", "3 findings")
    assert failure.text == "layers.{0..2}.a (3)\n    3 of 64 elements become inf in float16."
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "0")


def test_names_are_fit_for_machines() -> None:
    names = [(case.get("classname"), case.get("name")) for case in suite_of(SICK).iter("testcase")]
    assert names == [
        ("gemma-doctor.scan", "coverage"),
        ("gemma-doctor.GD101", "nonfinite-weight"),
        ("gemma-doctor.GD102", "fp16-weight-overflow"),
        ("gemma-doctor.GD104", "fp16-conv-overflow-risk"),
    ]


@pytest.mark.parametrize("fail_on", FAIL_ON)
def test_what_does_not_fail_the_scan_fails_no_case_but_is_told(fail_on: FailOn) -> None:
    suite = suite_of(SICK, fail_on)
    expected = ["failure"] if fail_on in {"warning", "note"} else ["system-out"]
    assert outcome(case_of(suite, "GD104")) == expected
    assert outcome(case_of(suite, "GD102")) == (["system-out"] if fail_on == "never" else ["failure"])
    assert "conv\n    3 of 64 elements" in str(case_of(suite, "GD104")[0].text)


def test_an_incomplete_report_is_an_error_and_no_silence_is_a_pass() -> None:
    skipped = tuple(Skipped(f"b{n}", "dtype F3") for n in range(60))
    suite = suite_of(replace(SICK, coverage=Coverage(61, 1, skipped)))
    error = case_of(suite, "scan").find("error")
    assert error is not None
    assert (error.get("type"), error.get("message")) == ("incomplete", "Could not tell, 60 of 61 tensors not measured")
    assert str(error.text).startswith("b0: dtype F3\nb1: dtype F3\n")
    assert str(error.text).endswith("\nand 10 more")
    assert outcome(case_of(suite, "GD101")) == ["skipped"]
    assert outcome(case_of(suite, "GD102")) == ["failure"]
    assert suite.get("errors") == "1"


def test_long_lists_are_counted() -> None:
    many = [finding(tensor=f"t{n}", message=f"{'x' * n} is 0.") for n in range(60)]
    text = str(case_of(suite_of(report(many)), "GD102")[0].text)
    assert text.endswith("\nand 10 more findings")


@pytest.mark.parametrize("name", NAMES)
def test_a_stranger_s_name_is_text(name: str) -> None:
    suite = suite_of(report([finding(tensor=f"{name}.weight", message=f"{name} is 0.")]))
    (failure,) = case_of(suite, "GD102")
    assert failure.text == f"{safe_text(name)}.weight\n    {safe_text(name)} is 0."
