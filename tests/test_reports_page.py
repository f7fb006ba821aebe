"""The HTML report: complete, inert whatever a checkpoint holds, and the same each time."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from typing import Any

import pytest
from hostile import NAMES
from hypothesis import given, settings
from pages import PLAN, SICK, Parsed, parsed
from report_strategies import reports
from sample_reports import PUBLISHED, finding, report, tensor
from sample_verifications import verified

from gemma_doctor import catalog
from gemma_doctor.records import Coverage, Proof, Report, Skipped, Suppressed
from gemma_doctor.reports.page import to_fragment, to_html


def shown(what: Report, **more: Any) -> Parsed:  # noqa: ANN401  # as to_html
    return parsed(to_html(what, **more))


def test_the_policy_allows_the_script_and_the_style_by_their_hashes_and_nothing_else() -> None:
    page = shown(SICK)
    policy = next(
        value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "-src" in value
    )
    sources = dict(part.split(" ", 1) for part in policy.split("; "))
    hashes = {
        kind: f"'sha256-{base64.b64encode(hashlib.sha256(page.raw[element].encode()).digest()).decode()}'"
        for kind, element in (("style-src", "style"), ("script-src", "script#None"))
    }
    assert sources == {
        "default-src": "'none'",
        **hashes,
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_the_file_refers_to_nothing_outside_of_itself() -> None:
    page = shown(SICK, before=SICK, plan=PLAN, pages={rule.id: catalog.page(rule) for rule in catalog.RULES})
    links = [
        value for _, name, value in page.attributes if name in {"href", "src", "srcset", "action", "data", "poster"}
    ]
    assert all(link.startswith("#") for link in links)
    targets = {value for _, name, value in page.attributes if name == "id"}
    assert {link[1:] for link in links} <= targets
    assert "url(" not in page.raw["style"]
    assert re.findall(r"fetch|XMLHttpRequest|import\(|innerHTML|eval\(|document\.write", page.raw["script#None"]) == []


def test_no_element_carries_a_style_or_a_handler_that_the_policy_would_refuse() -> None:
    pages = {rule.id: catalog.page(rule) for rule in catalog.RULES}
    pages["GD101"] += "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"
    every = report([finding(rule.id) for rule in catalog.RULES], PUBLISHED)
    for page in (shown(every, pages=pages), shown(verified(), plan=PLAN, before=SICK)):
        assert [name for _, name, _ in page.attributes if name == "style" or name.startswith("on")] == []


def test_the_same_report_gives_the_same_bytes_and_no_date_that_it_was_not_told() -> None:
    assert to_html(SICK) == to_html(SICK)
    assert re.findall(r"\b20[0-9]{2}-[0-9]{2}|UTC", to_html(SICK)) == []
    assert "1 May 2026" in shown(SICK, date="1 May 2026").text


def test_the_verdict_what_comes_next_and_the_origin_are_said() -> None:
    text = shown(SICK, commands=[("gemma-doctor rule GD102", "what it means")]).text
    for words in (
        "Sick 1 error, 1 warning, 1 finding set aside. In float16: 1 convolution may overflow.",
        "gemma-doctor rule GD102 what it means",
        "Made by gemma-doctor 1.2.3",
        "Revision none: local files",
        "Coverage Measured 5 of 5 tensors",
        "To make it again gemma-doctor scan 'some model/'",
    ):
        assert words in text


def test_the_command_to_make_it_again_says_what_is_not_the_default() -> None:
    source = replace(SICK.source, uri="google/some", revision="abc")
    other = replace(SICK, source=source, target_dtype="bfloat16", loader="vllm")
    command = "gemma-doctor scan google/some --revision abc --target-dtype bfloat16 --loader vllm"
    assert command in shown(other).text
    assert "gemma-doctor verify 'some model/' --freeze 'tower.*' --against elsewhere" in shown(verified()).text
    assert "gemma-doctor mine" in shown(SICK, command="gemma-doctor mine").text


def test_findings_stand_under_their_rule_with_its_page_the_gravest_first() -> None:
    page = shown(SICK, pages={"GD104": "# GD104 title\n\n## What it checks\n\nA *sum*, `x < y` and <b>no tag</b>.\n"})
    text = page.text
    assert text.index("GD102") < text.index("3 of 64 elements become inf") < text.index("GD104")
    assert "What it checks A sum, x < y and <b>no tag</b>." in text
    assert "GD104 title" not in text
    assert (page.tags["em"], page.tags["b"]) == (1, 0)


def test_what_was_set_aside_left_out_or_remarked_is_there() -> None:
    left = replace(SICK, coverage=Coverage(6, 5, (Skipped("lost.weight", "its file is cut short"),)))
    text = shown(left).text
    for words in (
        "known since May",
        "lost.weight: its file is cut short",
        "an entry without a finding",
        "This is not all.",
    ):
        assert words in text
    assert "Could not tell" in text


def test_what_is_proved_is_said_with_what_it_takes_for_granted() -> None:
    partly = shown(replace(SICK, proof=Proof(40, 30, ("gains stay as they are",)))).text
    assert "Proved safe: 30 of 40 values of a float16 run, whatever the input." in partly
    assert "gains stay as they are" in partly
    assert (
        "it cannot overflow in the forward pass, whatever the input"
        in shown(replace(SICK, proof=Proof(40, 40, ()))).text
    )
    assert "Proved" not in shown(SICK).text


def test_two_reports_stand_side_by_side() -> None:
    after = report(tensors=[*PUBLISHED[1:], replace(tensor(PUBLISHED[0].info.name, 3.0), role="conv")])
    page = shown(after, before=SICK)
    text = page.text
    for words in ("Findings gone 2", "Findings new 0", "Tensors changed 1", "Before some model/ Sick: 1 error"):
        assert words in text
    place = page.data["tensors"]["name"].index(PUBLISHED[0].info.name)
    assert page.data["before"] == [[place, 98.0]]


def test_a_plan_is_shown_with_what_it_leaves() -> None:
    text = shown(SICK, plan=PLAN).text
    for words in ("a.w times 2^-3 GD104", "layers.{1,2}.k 2 left out GD201", "only a lossy pass mends it"):
        assert words in text


def test_a_verification_names_the_first_failing_operation_and_its_margin() -> None:
    page = shown(verified())
    text = page.text
    for words in (
        "aten.convolution in tower.conv, forward, step 7: 4 of 8 elements NaN or inf",
        "The reference reaches 131,008: 1 bit beyond float16's 65504.",
        "hidden_size = 2048",
        "2 to 163 bits of room",
        "32 overflow in b",
        "tower.conv Conv2d not finite 0.01 50 %",
        "accumulates in float16",
        "KL from the other checkpoint 0.5 nats",
    ):
        assert words in text
    assert [run["op"] for run in page.data["runs"]] == [["aten.mul", "aten.convolution"], []]


@pytest.mark.parametrize("name", NAMES)
def test_hostile_strings_stay_text_wherever_they_stand(name: str) -> None:
    plain, hostile = (
        replace(
            report([replace(finding(tensor=word, message=word), name=word, rule=word, file=word)], [tensor(word)]),
            source=replace(SICK.source, uri=word, revision=word, architecture=word, format=word),
            coverage=Coverage(2, 1, (Skipped(word, word),)),
            suppressed=(Suppressed(finding(tensor=word, message=word), "allow", word, word),),
            remarks=(word,),
            version=word,
        )
        for word in ("plain.words", name)
    )
    commands = ((name, name),)
    page = shown(hostile, commands=commands, before=hostile, command=name, date=name)
    assert set(page.tags) <= set(shown(plain, commands=commands, before=plain).tags)
    assert (page.tags["script"], page.tags["style"]) == (2, 1)
    assert [name for _, name, _ in page.attributes if name.startswith("on")] == []
    document = to_html(hostile)
    assert [char for char in document if not char.isprintable() and char != "\n"] == []
    document.encode()
    assert set(parsed(to_fragment(hostile)).tags) <= set(parsed(to_fragment(plain)).tags)


@settings(max_examples=25)
@given(reports)
def test_any_report_is_a_whole_page_that_holds_every_tensor(any_report: Report) -> None:
    page = shown(any_report)
    assert page.tags["script"] == 2
    assert len(page.data["tensors"]["name"]) == len(any_report.tensors)


def test_a_list_that_is_endless_is_cut_and_says_so() -> None:
    findings = [finding(tensor=f"{number}x", message=f"message {number}") for number in range(5000)]
    document = to_html(report(findings))
    assert len(document) < 400_000
    assert "further messages" in document
    assert "5,000 findings" in document


def test_a_notebook_gets_the_verdict_and_the_findings_without_a_script() -> None:
    html = SICK._repr_html_()
    page = parsed(html)
    assert (page.tags["script"], page.tags["style"], page.tags["link"]) == (0, 0, 0)
    assert page.text.startswith("Sick: 1 error, 1 warning")
    for words in ("GD102", "3 of 64 elements become inf in float16.", "Measured 5 of 5 tensors"):
        assert words in page.text
