"""``gemma-doctor report``: a saved report again, or two beside each other."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from command import call
from sample_reports import PUBLISHED, finding, report, tensor
from sample_verifications import verified

from gemma_doctor.records import Coverage, Finding, Repair, Report, Skipped
from gemma_doctor.reports.machine import to_json

SICK = report([finding(), finding("GD104", "warning", PUBLISHED[0].info.name, "Outputs can pass 256.")], PUBLISHED)
MENDED = report(tensors=[replace(PUBLISHED[0], stats=tensor("x", 3.0).stats), *PUBLISHED[1:]])


def save(folder: Path, reports: Iterable[Report]) -> list[Path]:
    """The reports as files."""
    paths = []
    for number, one in enumerate(reports):
        paths.append(folder / f"{number}.json")
        paths[-1].write_text(to_json(one), encoding="utf-8")
    return paths


def test_a_saved_report_is_shown_again(tmp_path: Path) -> None:
    done = call("report", *save(tmp_path, [SICK]))
    assert (done.code, done.err) == (1, "")
    assert done.out.startswith("Sick: 1 error, 1 warning.")
    assert "gemma-doctor repair 'some model/' --output mended" in done.out
    assert "--json report.json" not in done.out


def test_two_reports_are_compared_and_the_second_counts(tmp_path: Path) -> None:
    before, after = save(tmp_path, [SICK, MENDED])
    done = call("report", before, after)
    assert (done.code, done.err) == (0, "")
    assert "Between them: 2 findings gone, 0 new, 0 kept; 1 tensor changed, 0 gone, 0 new." in done.out
    assert call("report", after, before).code == 1


def test_in_short(tmp_path: Path) -> None:
    paths = save(tmp_path, [SICK, MENDED])
    assert "Largest convolution" not in call("report", paths[0], "-q").out
    assert "Gone:" not in call("report", *paths, "-q").out


@pytest.mark.parametrize(("fail_on", "code"), [("error", 1), ("never", 0)])
def test_what_fails_is_asked_for(tmp_path: Path, fail_on: str, code: int) -> None:
    assert call("report", *save(tmp_path, [SICK]), "--fail-on", fail_on).code == code


def test_an_incomplete_report_never_exits_with_0(tmp_path: Path) -> None:
    left = replace(MENDED, coverage=Coverage(6, 5, (Skipped("lost", "cut short"),)))
    assert call("report", *save(tmp_path, [left]), "--fail-on", "never").code == 2


def test_documents_are_written_beside_each_other(tmp_path: Path) -> None:
    html, plot, markdown = tmp_path / "r.html", tmp_path / "r.svg", tmp_path / "r.md"
    done = call("report", *save(tmp_path, [SICK, MENDED]), "--html", html, "--plot", plot, "--markdown", markdown)
    assert done.code == 0
    page = html.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "Before and after" in page
    assert "What it checks" not in page
    assert plot.read_text(encoding="utf-8").startswith("<?xml")
    assert markdown.stat().st_size


def test_a_page_holds_the_pages_of_the_rules(tmp_path: Path) -> None:
    done = call("report", *save(tmp_path, [SICK]), "--html", "-")
    assert (done.code, done.err) == (1, "")
    assert done.out.startswith("<!doctype html>")
    assert done.out.endswith("</html>\n")
    assert "<h4>What it checks</h4>" in done.out


def test_a_saved_verification_is_shown_again(tmp_path: Path) -> None:
    done = call("report", *save(tmp_path, [verified()]), "--html", "-")
    assert "First failing operation" in done.out


def test_a_saved_verification_is_mended_by_what_is_measured_again(tmp_path: Path) -> None:
    """A repair without a trace of the same inputs need not mend what a run found."""
    found = Finding("GD402", "fp16-backward-overflow", "error", "sick", repair=Repair("rescale-conv", "eps"))
    sick = replace(verified(), findings=(found,))
    assert sick.verification is not None
    how = replace(sick.verification, mode="amp", backward=False, runs=sick.verification.runs[:1])
    done = call("report", *save(tmp_path, [replace(sick, verification=how)]))
    source = shlex.quote(sick.source.uri)
    assert [line.strip().partition("  #")[0] for line in done.out.splitlines()[-4:]] == [
        "gemma-doctor rule GD402",
        f"gemma-doctor verify {source} --modality text --no-backward --trace trace.json",
        f"gemma-doctor repair {source} --output mended --calibration trace.json",
        f"gemma-doctor verify mended --modality text --mode amp --no-backward --freeze 'tower.*' --against {source}",
    ], done.err


def test_three_reports_are_refused(tmp_path: Path) -> None:
    done = call("report", *save(tmp_path, [SICK, SICK, SICK]))
    assert (done.code, done.out) == (2, "")
    assert done.err == "gemma-doctor: 3 reports are given: one is shown, two are compared\n"


def test_what_is_no_report_is_named(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}", encoding="utf-8")
    done = call("report", other)
    assert (done.code, done.out) == (2, "")
    assert f"{other} is not a report that can be read" in done.err
    missing = call("report", tmp_path / "missing.json")
    assert missing.code == 2
    assert "missing.json" in missing.err


def test_a_plot_without_a_known_format_is_refused_before_the_work(tmp_path: Path) -> None:
    done = call("report", *save(tmp_path, [SICK]), "--plot", tmp_path / "plot.gif")
    assert (done.code, done.out) == (2, "")
    assert all(suffix in done.err for suffix in (".png", ".svg", ".pdf"))
