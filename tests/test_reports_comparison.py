"""Two reports: what is gone, new, kept and changed, as a record and at a terminal."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from sample_reports import PUBLISHED, finding, report, tensor
from sample_verifications import verified

from gemma_doctor.records import Coverage, Finding, Skipped
from gemma_doctor.reports import comparison_terminal
from gemma_doctor.reports.comparison import Comparison, compare
from gemma_doctor.reports.machine import from_json, to_json
from gemma_doctor.reports.sheet import console_for

FINDINGS = st.lists(
    st.builds(
        finding,
        rule=st.sampled_from(["GD101", "GD102"]),
        severity=st.sampled_from(["error", "note"]),
        tensor=st.sampled_from(["a", "b", None]),
    ),
    max_size=6,
)


def said(comparison: Comparison, *, brief: bool = False) -> str:
    """What goes into a pipe."""
    stream = io.StringIO()
    draw = comparison_terminal.render_brief if brief else comparison_terminal.render
    draw(comparison, console_for(stream))
    return stream.getvalue()


def test_findings_are_gone_new_or_kept() -> None:
    before = report([finding("GD101"), finding("GD102"), finding("GD104", tensor="b")])
    after = report([finding("GD102", message="other words"), finding("GD104", tensor="c")])
    found = compare(before, after)
    assert [(one.rule, one.tensor) for one in found.gone] == [("GD101", "a.weight"), ("GD104", "b")]
    assert [(one.rule, one.tensor) for one in found.new] == [("GD104", "c")]
    assert [(pair.before.message[:1], pair.after.message) for pair in found.kept] == [("3", "other words")]


@given(FINDINGS, FINDINGS)
def test_every_finding_is_accounted_for_once(before: list[Finding], after: list[Finding]) -> None:
    found = compare(report(before), report(after))
    assert Counter(map(repr, [*found.gone, *(pair.before for pair in found.kept)])) == Counter(map(repr, before))
    assert Counter(map(repr, [*found.new, *(pair.after for pair in found.kept)])) == Counter(map(repr, after))
    gone, new = ({(one.rule, one.tensor) for one in side} for side in (found.gone, found.new))
    assert gone.isdisjoint(new)


@given(FINDINGS)
def test_a_report_differs_in_nothing_from_itself(findings: list[Finding]) -> None:
    same = report(findings, PUBLISHED)
    found = compare(same, same)
    assert (found.gone, found.new, found.changed, found.added, found.removed, found.remarks) == ((),) * 6


def test_a_report_differs_in_nothing_from_its_saved_self() -> None:
    sick = report([finding()], PUBLISHED)
    found = compare(sick, from_json(to_json(sick)))
    assert (found.gone, found.new, found.changed) == ((), (), ())


def test_severities_that_move_are_told() -> None:
    before = report([finding("GD102", "warning"), finding("GD101", "note"), finding("GD103", "note")])
    after = report([finding("GD102", "note"), finding("GD101", "error"), finding("GD103", "note")])
    pairs = compare(before, after).kept
    assert [(pair.after.rule, pair.graver, pair.lighter) for pair in pairs] == [
        ("GD102", False, True),
        ("GD101", True, False),
        ("GD103", False, False),
    ]
    assert "GD101 note before, error now" in said(compare(before, after))


def test_tensors_are_changed_added_or_removed() -> None:
    before = report(tensors=[tensor("same"), tensor("halved", 4.0), tensor("cast", dtype="F32"), tensor("dropped")])
    after = report(tensors=[tensor("new"), tensor("same"), tensor("halved", 2.0), tensor("cast", dtype="BF16")])
    found = compare(before, after)
    assert [pair.after.info.name for pair in found.changed] == ["halved", "cast"]
    assert [one.info.name for one in found.added] == ["new"]
    assert [one.info.name for one in found.removed] == ["dropped"]


def test_a_tensor_that_only_moved_in_its_file_has_not_changed() -> None:
    here = tensor("a")
    moved = replace(here, info=replace(here.info, start=0, stop=128, file="other.safetensors"))
    assert compare(report(tensors=[here]), report(tensors=[moved])).changed == ()


def test_what_cannot_be_compared_is_said() -> None:
    before = report([finding(tensor="dropped")], [tensor("dropped"), tensor("a")])
    after = replace(
        report(tensors=[tensor("a")]),
        target_dtype="bfloat16",
        coverage=Coverage(2, 1, (Skipped("b", "unreadable"),)),
    )
    assert compare(before, after).remarks == (
        "They are judged differently: before for float16 and transformers, after for bfloat16 and transformers.",
        "The report after is incomplete: 1 of 2 tensors were measured.",
        (
            "1 of the findings that are gone concern tensors that the later report does not hold: "
            "removed, renamed or not measured."
        ),
    )


def test_the_verifications_of_both_are_there() -> None:
    sick = verified()
    found = compare(report(), sick)
    assert found.verifications == (None, sick.verification)
    assert "aten.convolution in tower.conv fails first." in said(found)


def test_people_see_both_verdicts_what_is_gone_new_and_changed() -> None:
    before = report(
        [finding("GD102", tensor="halved")], [tensor("halved", 70000.0), tensor("layers.1.w"), tensor("layers.2.w")]
    )
    after = report([finding("GD104", "warning", tensor="halved", message="new words")], [tensor("halved", 35000.0)])
    text = said(compare(before, after))
    lines = text.splitlines()
    assert lines[0].startswith("Before: some model/: Sick: 1 error.")
    assert lines[1].startswith("After: some model/: At risk: 1 warning.")
    assert lines[2] == "Between them: 1 finding gone, 1 new, 0 kept; 1 tensor changed, 2 gone, 0 new."
    gone, new = text.index("\nGone: 1 finding\n"), text.index("\nNew: 1 finding\n")
    assert gone < text.index("error GD102") < new < text.index("new words")
    assert ["halved", "BF16", "70000", "35000"] in [line.split() for line in lines]
    assert "layers.{1,2}.w (2)" in text


def test_in_short_only_what_is_new() -> None:
    before, after = report([finding("GD102")]), report([finding("GD101", message="new words")])
    text = said(compare(before, after), brief=True)
    assert "new words" in text
    assert "Gone:" not in text
