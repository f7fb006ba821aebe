"""The HTML report in a real browser: nothing is asked for, all can be reached, and strangers' names are inert."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from browsers import chromium, opened, saved
from hostile import NAMES
from pages import PLAN, SICK
from playwright.sync_api import Browser
from sample_reports import PUBLISHED, finding, report, tensor
from sample_verifications import verified

from gemma_doctor import catalog
from gemma_doctor.reports.page import to_html
from gemma_doctor.tensors import TensorStats

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
PAGES = {rule.id: catalog.page(rule) for rule in catalog.RULES}
MANY = tuple(
    tensor(f"model.layers.{number // 10}.part{number % 10}.weight", 1 + number / 1e4) for number in range(20_000)
)
LONG = report([finding(tensor="x" * 5000), finding(tensor="y." * 3000, message="z" * 5000)], [tensor("x" * 5000)])
HOSTILE = report(
    [replace(finding(tensor=name, message=name), name=name, rule=f"GD102{name}") for name in NAMES],
    [tensor(name) for name in NAMES],
)
DOCUMENTS = {
    "healthy": to_html(report(tensors=PUBLISHED[1:])),
    "sick": to_html(SICK, (("gemma-doctor repair sick --output mended", "write a mended copy"),), pages=PAGES),
    "before and after": to_html(report(tensors=PUBLISHED[1:]), before=SICK, plan=PLAN),
    "verified": to_html(replace(verified(), tensors=())),
    "hostile": to_html(HOSTILE, before=HOSTILE, pages={"GD102": "# x\n\n<script>document.title = 'ran'</script>\n"}),
    "long names": to_html(LONG, before=LONG),
    "empty": to_html(report(tensors=[])),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.mark.parametrize("which", DOCUMENTS)
def test_a_page_opens_without_a_complaint_and_asks_for_nothing(browser: Browser, tmp_path: Path, which: str) -> None:
    with opened(browser, saved(DOCUMENTS[which], tmp_path)) as seen:
        seen.page.wait_for_load_state("networkidle")
        assert seen.requests == [(tmp_path / "report.html").as_uri()]
        assert seen.page.locator("h1").is_visible()
        assert seen.count(".chart svg") == seen.count(".chart")


@pytest.mark.parametrize("which", DOCUMENTS)
def test_a_phone_needs_no_horizontal_scrolling(browser: Browser, tmp_path: Path, which: str) -> None:
    with opened(browser, saved(DOCUMENTS[which], tmp_path), width=390) as seen:
        seen.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        for scheme in SCHEMES:
            seen.page.emulate_media(color_scheme=scheme)
            assert seen.overflow <= 0


def test_dark_is_dark_and_light_is_light(browser: Browser, tmp_path: Path) -> None:
    backgrounds = {}
    for scheme in SCHEMES:
        with opened(browser, saved(DOCUMENTS["sick"], tmp_path), scheme=scheme) as seen:
            colour = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
            backgrounds[scheme] = sum(int(part) for part in colour[4:-1].split(","))
    assert backgrounds["light"] > 3 * 230
    assert backgrounds["dark"] < 3 * 40


def test_a_server_is_asked_for_the_page_only(browser: Browser, tmp_path: Path) -> None:
    asked: list[str] = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            asked.append(str(words[1]))

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            saved(DOCUMENTS["sick"], tmp_path)
            address = f"http://127.0.0.1:{server.server_port}"
            with opened(browser, f"{address}/report.html") as seen:
                seen.page.wait_for_load_state("networkidle")
                assert seen.requests == [f"{address}/report.html"]
        finally:
            server.shutdown()
            thread.join()
    assert asked == ["GET /report.html HTTP/1.1"]


def test_hostile_names_are_shown_and_not_run(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, saved(DOCUMENTS["hostile"], tmp_path)) as seen:
        assert seen.page.title().startswith("Sick: ")
        shown = seen.texts("#table tbody th .open")
        assert {"<script>alert(1)</script>", "{{7*7}} {0} ${{ secrets.TOKEN }}", "\\u202egnp.exe\\u2066"} <= set(shown)
        assert len(shown) == len(NAMES)
        assert seen.count("script") == 2
        assert seen.count("img, iframe, object, link, b") == 0


def test_the_policy_refuses_what_the_page_does_not_hold(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, saved(DOCUMENTS["sick"], tmp_path)) as seen:
        ran = seen.page.evaluate(
            """() => {
              const made = (tag, fill) => {
                const node = document.createElement(tag);
                fill(node);
                document.body.append(node);
              };
              const attempts = [
                () => made("script", (node) => { node.text = "window.ran = 1"; }),
                () => { document.body.innerHTML = "<b>markup</b>"; },
                () => made("img", (node) => { node.src = "data:image/gif;base64,R0lGODlhAQABAAAAACw="; }),
              ];
              return attempts.map((attempt) => {
                try { attempt(); return window.ran || "quiet"; } catch { return "refused"; }
              });
            }"""
        )
        assert ran[:2] == ["refused", "refused"]
        seen.page.wait_for_function("document.images.length === 1 && document.images[0].complete")
        assert seen.page.evaluate("document.images[0].naturalWidth") == 0
        assert seen.complaints
        seen.complaints.clear()


def test_the_table_filters_by_name_role_and_rule(browser: Browser, tmp_path: Path) -> None:
    mixed = replace(SICK, tensors=(*PUBLISHED, tensor("model.other.weight"), tensor("model.some.bias", role="bias")))
    with opened(browser, saved(to_html(mixed), tmp_path)) as seen:
        assert seen.texts("#matches") == ["7 tensors"]
        seen.page.get_by_role("searchbox", name="Name").fill("PW_EXP")
        assert seen.texts("#matches") == ["3 of 7 tensors"]
        assert all("pw_exp" in name for name in seen.texts("#table tbody th"))
        seen.page.get_by_role("searchbox", name="Name").fill("")
        seen.page.get_by_role("combobox", name="Role").select_option("bias")
        assert [name.split()[0] for name in seen.texts("#table .open")] == ["model.some.bias"]
        seen.page.get_by_role("combobox", name="Role").select_option("")
        seen.page.get_by_role("combobox", name="Finding").select_option("GD104")
        assert seen.texts("#table .open") == [PUBLISHED[0].info.name]
        assert seen.texts("#table td .badge") == ["GD104"]
        seen.page.get_by_role("searchbox", name="Name").fill("nothing at all")
        assert seen.texts("#table tbody") == ["No tensor matches."]


def test_a_finding_leads_to_its_tensors(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, saved(DOCUMENTS["sick"], tmp_path)) as seen:
        seen.page.locator(".finding", has_text="GD104").get_by_role("button", name="Show in the table").click()
        assert seen.texts("#table .open") == [PUBLISHED[0].info.name]
        assert seen.page.get_by_role("combobox", name="Finding").input_value() == "GD104"


def test_the_table_sorts_both_ways_and_puts_what_is_unknown_last(browser: Browser, tmp_path: Path) -> None:
    broken = tensor("broken", stats=TensorStats(count=2, nan=2))
    sized = [tensor(f"layers.{number}.w", size) for number, size in enumerate([3.0, 1e-9, 20.0])]
    with opened(browser, saved(to_html(report(tensors=[*sized, broken])), tmp_path)) as seen:
        largest = seen.page.get_by_role("button", name="Largest")
        column = seen.page.locator("#table thead th", has=largest)
        assert seen.texts("#table .open") == ["layers.2.w", "layers.0.w", "layers.1.w", "broken"]
        assert column.get_attribute("aria-sort") == "descending"
        largest.click()
        assert seen.texts("#table .open") == ["layers.1.w", "layers.0.w", "layers.2.w", "broken"]
        assert column.get_attribute("aria-sort") == "ascending"
        seen.page.get_by_role("button", name="Tensor", exact=True).click()
        assert seen.texts("#table .open") == ["broken", "layers.0.w", "layers.1.w", "layers.2.w"]
        assert column.get_attribute("aria-sort") is None


def test_a_row_opens_to_exact_figures_with_units(browser: Browser, tmp_path: Path) -> None:
    stats = TensorStats(count=64, minimum=-0.1, maximum=2**53 + 1, zeros=3, fp16_underflow=5)
    with opened(browser, saved(to_html(report(tensors=[tensor("exact", stats=stats)])), tmp_path)) as seen:
        button = seen.page.locator("#table .open")
        button.click()
        assert button.get_attribute("aria-expanded") == "true"
        figures = dict(text.split("\n", 1) for text in seen.texts("#table .detail dl > div"))
        assert figures["Largest finite magnitude"] == "9007199254740993"
        assert figures["Smallest value"] == "-0.1"
        assert figures["Zeros"] == "3 of 64 elements"
        assert figures["Size"] == "128 bytes"
        button.press("Enter")
        assert seen.count("#table .detail") == 0


def test_20_000_tensors_are_listed_a_page_at_a_time(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, saved(to_html(report(tensors=MANY)), tmp_path)) as seen:
        assert seen.texts("#matches") == ["20,000 tensors"]
        assert (seen.count("#table tbody tr"), seen.texts("#page")) == (50, ["1 of 400"])
        seen.page.get_by_role("button", name="Next").click()
        assert seen.texts("#page") == ["2 of 400"]
        seen.page.get_by_role("searchbox", name="Name").fill("layers.1999.")
        assert seen.texts("#matches") == ["10 of 20,000 tensors"]
        assert seen.page.get_by_role("button", name="Next").is_disabled()


def nameless(seen: Any) -> list[str]:  # noqa: ANN401  # an open page
    """Controls and pictures without a name that a screen reader could say."""
    found: list[str] = seen.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, summary, a, [role=img], [tabindex], table")]
          .filter((one) => one.checkVisibility())
          .filter((one) => !(one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.length))
          .map((one) => one.outerHTML.slice(0, 80))"""
    )
    return found


@pytest.mark.parametrize("which", DOCUMENTS)
def test_everything_that_can_be_operated_has_a_name(browser: Browser, tmp_path: Path, which: str) -> None:
    with opened(browser, saved(DOCUMENTS[which], tmp_path)) as seen:
        assert nameless(seen) == []
        levels = seen.page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map((one) => +one.tagName[1])")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        ids = seen.page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
        assert len(ids) == len(set(ids))


def test_print_shows_the_report_without_its_controls(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, saved(DOCUMENTS["sick"], tmp_path), scheme="dark") as seen:
        seen.page.emulate_media(media="print")
        assert not seen.page.locator("nav").is_visible()
        assert not seen.page.locator(".filters").is_visible()
        assert seen.page.locator(".chart svg").first.is_visible()
        assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_page_without_a_script_still_reads(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(DOCUMENTS["sick"], encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator(".finding").count() == 2
    assert "need the script in this file" in page.locator("noscript").inner_text()
    context.close()
