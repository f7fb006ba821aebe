"""The Markdown report: what it says, that strangers' strings stay text, and that it fits a comment on GitHub."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hostile import NAMES
from hypothesis import given
from markdown_it import MarkdownIt
from report_strategies import reports
from sample_reports import PUBLISHED, finding, report, tensor
from sample_verifications import verified

from gemma_doctor.records import Coverage, Proof, Report, Skipped, Suppressed
from gemma_doctor.reports.markdown import MOST, to_markdown
from gemma_doctor.reports.names import elide, safe_text

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
OURS = {"h3", "p", "strong", "code", "pre", "ul", "li", "details", "summary", "b", "span"}
TABLE = {"table", "thead", "tbody", "tr", "th", "td"}
ACTIVE = re.compile(r"@\w|(?<!&)#\d|\b[Gg][Hh]-\d|\w://|\bwww\.\w|\$")


class Page(HTMLParser):
    """What a browser would see: the elements, the text of code spans, and all other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.code: list[str] = []
        self.prose = ""
        self._open: list[str] = []
        self.feed(PARSER.render(text))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.tags.append(tag)
        self._open.append(tag)
        self.attributes += attrs
        if tag == "code":
            self.code.append("")

    def handle_endtag(self, tag: str) -> None:
        """An element ends."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text."""
        if "code" in self._open:
            self.code[-1] += data
        elif self._open[-1:] != ["span"]:
            self.prose += data


@pytest.mark.parametrize("name", NAMES)
def test_a_stranger_s_name_is_shown_and_is_nothing_else(name: str) -> None:
    page = Page(to_markdown(report([finding(tensor=f"{name}.weight")], [tensor(f"{name}.weight", role="conv")])))
    shown = safe_text(f"{name}.weight")
    assert {*page.tags} <= OURS | TABLE
    assert page.code[1] == shown.strip(" ") or page.code[1] == shown
    assert page.code[2] == page.code[1].replace("|", r"\x7c")
    assert page.tags.count("td") == 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["{}", "It is '{}' here.", "see {}"])
def test_a_stranger_s_message_is_shown_and_is_nothing_else(name: str, form: str) -> None:
    message = form.format(name)
    sick = replace(
        report([finding(tensor=None, message=message)]),
        remarks=(message,),
        coverage=Coverage(2, 1, (Skipped("b", message),)),
        suppressed=(Suppressed(finding(), "allow", message, message),),
    )
    page = Page(to_markdown(sick))
    assert {*page.tags} <= OURS
    assert ACTIVE.search(page.prose) is None
    words = " ".join(safe_text(message).split())
    said = " ".join(re.sub("\u200b|Remark: ", "", page.prose).split())
    assert said.count(words.replace("$", "")) >= 4


@given(reports)
def test_any_report_is_sound_markdown_that_fits_a_comment(original: Report) -> None:
    text = to_markdown(original)
    assert len(text) <= MOST
    page = Page(text)
    assert {*page.tags} <= OURS | TABLE
    assert {name for name, _ in page.attributes} <= {"open", "style"}


def test_verdict_findings_convolutions_and_coverage_are_in_it() -> None:
    text = to_markdown(report([finding("GD101"), finding("GD104", "warning", PUBLISHED[0].info.name)], PUBLISHED))
    lines = text.splitlines()
    assert lines[0] == "### gemma-doctor: Sick"
    assert lines[2].startswith("**Sick**: 1 error, 1 warning. In float16: ")
    assert lines[4] == "`some model/`: gemma3n, 1 safetensors file, judged for float16 and transformers"
    assert "<details open><summary><b>error</b> GD101 nonfinite-weight</summary>" in lines
    assert "<details><summary><b>warning</b> GD104 fp16-conv-overflow-risk</summary>" in lines
    assert "| `msfa.ffn.pw_proj.conv.weight` | 98.000 | 0.653 | 256 |" in lines
    assert "Measured 5 of 5 tensors: 320 parameters, 640 B in 0.5 s (1.28 kB/s)." in lines


def test_families_are_folded_and_many_entries_are_counted() -> None:
    layers = [finding(tensor=f"layers.{n}.a", message=f"Layer {n} is 0.", measure=99) for n in range(30)]
    others = [finding(tensor=f"t{n}", message=f"{'x' * n} is 0.", measure=n) for n in range(30)]
    text = to_markdown(report([*layers, *others]))
    assert "- `layers.{0..29}.a` (30): Layer {0..29} is 0." in text
    assert "- 11 more findings for which there is no room here\n" in text


def test_what_does_not_fit_is_counted() -> None:
    rules = [finding(f"GD{n}", tensor=f"t{m}", message=f"{m}{'$' * 902}") for n in range(100, 120) for m in range(4)]
    text = to_markdown(report(rules))
    assert len(text) <= MOST
    assert text.count("<span>$</span>") == 3 * 902
    assert "\n- 1 more finding for which there is no room here\n" in text
    assert "\nNo room for all findings: left out are 4 of GD101, 4 of GD102, " in text
    assert " and 9 more rules. The JSON and HTML reports hold them all.\n" in text


def test_rules_without_end_are_counted() -> None:
    rules = [finding(f"GD{n}{'$' * 40}", severity) for n in range(1000) for severity in ("error", "note")]
    text = to_markdown(report(rules))
    assert len(text) <= MOST
    shown = text.count("<summary>")
    assert shown > 10
    assert f" and {2000 - shown - 10:,} more rules." in text


def test_long_names_are_elided() -> None:
    name = "x" * 100_000
    text = to_markdown(report([finding(tensor=name)], [tensor(name, role="conv")]))
    assert text.count(f"`{elide(name)}`") == 2
    assert len(text) < 3000


def test_an_incomplete_report_says_so_and_names_what_is_missing() -> None:
    part = replace(report(), coverage=Coverage(3, 1, (Skipped("b", "dtype F3"), Skipped("c", "dtype F3"))))
    text = to_markdown(part)
    assert text.startswith("### gemma-doctor: Could not tell, 2 of 3 tensors not measured\n")
    assert "- **Not measured: 2 tensors** (`b`, `c`), dtype F3\n" in text


def test_what_is_proved_is_said() -> None:
    proved = to_markdown(replace(report(), proof=Proof(1200, 1100, ())))
    assert "\nProved safe: 1,100 of 1,200 values of a float16 run, whatever the input.\n" in proved
    certified = to_markdown(replace(report(), proof=Proof(9, 9, ())))
    assert "9 of 9 values of a float16 run: it cannot overflow in the forward pass, whatever the input.\n" in certified
    fused = to_markdown(replace(report(), proof=Proof(9, 9, (), 4, 3)))
    assert "whatever the input; eager attention is not covered: of its 4 attention scores, 3 fit.\n" in fused
    assert to_markdown(replace(report(), proof=Proof(9, 9, (), 4, 4))) == certified
    eager = to_markdown(replace(report(), proof=Proof(9, 8, (), 4, 3)))
    assert "whatever the input; with eager attention also 3 of 4 attention scores.\n" in eager


def test_a_certificate_says_what_it_takes_for_granted() -> None:
    certified = to_markdown(replace(report(), proof=Proof(9, 9, ("gains stay", "no dropout"))))
    assert "whatever the input.\nAssumed: gains stay; no dropout.\n" in certified
    assert "Assumed" not in to_markdown(replace(report(), proof=Proof(9, 8, ("gains stay",))))


def test_commands_come_last() -> None:
    text = to_markdown(report(), [("gemma-doctor rule GD101", "what it means")])
    assert text.endswith("Next:\n\n- `gemma-doctor rule GD101`: what it means\n")


def test_a_verification_names_the_first_failure_and_the_least_room() -> None:
    text = to_markdown(verified())
    assert r"**Verification** on cpu: forward and backward, tower.\* frozen, mode half." in text
    assert (
        "| text: `32 tokens` | 2 | `aten.convolution` in `tower.conv` | KL not finite, top-1 25.0% "
        "(bfloat16: KL 0.125 nats, top-1 100.0%) | 2 to 16 (3 bits) |" in text
    )
    assert "| image: `1 image of 768 x 768` | 1 | none | - | 4 to 4 (0 bits) |" in text
    assert (
        "First failure with text (forward): `aten.convolution` in `tower.conv`: 4 inf of 8 elements. In the reference "
        "its largest magnitude is 131,008.000, 1 bits beyond float16's range." in text
    )
    rows = text[text.index("| operation | module |") :].splitlines()
    assert rows[2] == "| `aten.convolution` | `tower.conv` | 65,504.000 | 0 |"
    assert "Verification" not in to_markdown(report())
