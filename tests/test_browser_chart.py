"""The report's pictures in a real browser: the charts and the heat map, by pointer and by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from browsers import chromium, opened, saved
from pages import SICK
from playwright.sync_api import Browser
from sample_reports import PUBLISHED, report, tensor
from sample_verifications import activation, verified

from gemma_doctor.reports.page import to_html

PAGE = to_html(SICK)
VERIFIED = to_html(replace(verified(), tensors=()))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def test_the_chart_tells_what_is_under_the_pointer_and_a_click_jumps_to_its_row(
    browser: Browser, tmp_path: Path
) -> None:
    with opened(browser, saved(PAGE, tmp_path)) as seen:
        chart = seen.page.locator(".chart.weights")
        chart.focus()
        chart.press("End")
        spot = seen.page.locator(".chart.weights .focus").bounding_box()
        assert spot is not None
        chart.press("Escape")
        seen.page.mouse.move(spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2)
        assert seen.texts("#tip") == [
            f"{PUBLISHED[0].info.name}\nconv, BF16: largest magnitude 98\nGD104",
        ]
        seen.page.mouse.down()
        seen.page.mouse.up()
        assert seen.texts("#table tr.shown .open") == [PUBLISHED[0].info.name]
        assert seen.page.evaluate("document.activeElement.className") == "open"
        assert seen.page.locator("#table tr.shown").evaluate("(row) => row.getBoundingClientRect().top < innerHeight")


def test_the_chart_obeys_the_keyboard(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, saved(PAGE, tmp_path)) as seen:
        chart = seen.page.locator(".chart.weights")
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
            chart.press(key)
        assert "blocks.2.21.attn.key.down_conv.weight" in seen.texts("#tip")[0]
        chart.press("Enter")
        assert seen.texts("#table tr.shown .open") == [PUBLISHED[1].info.name]


def test_the_chart_draws_the_limits_and_dims_what_the_filter_leaves_out(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, saved(PAGE, tmp_path)) as seen:
        assert seen.page.locator(".chart.weights .limit-label").all_text_contents() == ["65504", "32752", "256"]
        assert seen.count(".chart.weights .points.dim") == 0
        seen.page.get_by_role("searchbox", name="Name").fill("down_conv")
        seen.page.wait_for_selector(".chart.weights .points.dim", state="attached")
        assert seen.count(".chart.weights .points.dim") == 1


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(("page", "chart"), [(PAGE, ".chart.weights"), (VERIFIED, ".chart.activations")])
def test_the_numbers_of_the_limits_stand_beside_the_points_and_apart(
    browser: Browser, tmp_path: Path, page: str, chart: str, width: int
) -> None:
    with opened(browser, saved(page, tmp_path), width) as seen:
        drawing = seen.page.locator(f"{chart} svg").first
        points = drawing.locator(".limit").evaluate_all("(all) => all.map((one) => one.getBoundingClientRect().right)")
        edge = drawing.evaluate("(svg) => svg.getBoundingClientRect().right")
        labels = drawing.locator(".limit-label").evaluate_all(
            "(all) => all.map((one) => one.getBoundingClientRect()).map((at) => [at.left, at.right, at.top, at.bottom])"
        )
        assert len(labels) == 3
        assert min(left for left, *_ in labels) > max(points)
        assert max(right for _, right, *_ in labels) <= edge
        assert sorted(labels, key=lambda box: box[2]) == labels
        assert all(upper[3] <= lower[2] + 4 for upper, lower in pairwise(labels))  # a line is higher than a digit


def test_what_float16_does_not_bound_is_pale_and_named(browser: Browser, tmp_path: Path) -> None:
    """Numbers of other dtypes may lie beyond 65504 in a run that is sound."""
    wider = replace(activation("aten._to_copy", "model.norm"), dtype="F32")
    page = to_html(replace(verified(), tensors=(), activations=(activation(), wider)))
    with opened(browser, saved(page, tmp_path)) as seen:
        chart = ".chart.activations"
        assert seen.count(f"{chart} .points.forward") == 2
        assert seen.count(f"{chart} .points.forward.wide") == 1
        opacity = "(one) => Number(getComputedStyle(one).opacity)"
        assert seen.page.locator(f"{chart} .points.wide").first.evaluate(opacity) < 0.5
        assert seen.texts("#running .legend li")[:2] == ["forward", "forward, not float16"]


def test_what_a_tensor_was_before_is_drawn_and_told(browser: Browser, tmp_path: Path) -> None:
    after = report(tensors=[replace(PUBLISHED[0], stats=tensor("x", 3.0).stats), *PUBLISHED[1:]])
    with opened(browser, saved(to_html(after, before=SICK), tmp_path)) as seen:
        assert seen.count(".chart.weights .was") == 1
        seen.page.locator(".chart.weights").press("End")
        assert "largest magnitude 3\nbefore: 98" in seen.texts("#tip")[0]


def test_a_cell_of_the_heat_map_shows_its_tensors_and_the_arrow_keys_move(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, saved(PAGE, tmp_path)) as seen:
        cells = seen.page.locator("table[data-cells]").first.locator("button")
        assert cells.evaluate_all("(all) => all.map((one) => one.tabIndex)") == [0, -1, -1, -1]
        cells.first.focus()
        seen.page.keyboard.press("ArrowRight")
        assert seen.page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
            "layer 30, conv: 33.75 in"
        )
        seen.page.keyboard.press("Enter")
        assert seen.texts("#table .open") == [PUBLISHED[3].info.name]
        chip = seen.page.locator("#by-cell")
        assert chip.inner_text().startswith("layer 30 of model.vision_tower.timm_model.blocks.2, conv")
        chip.click()
        assert seen.texts("#matches") == ["5 tensors"]


def test_activations_are_drawn_with_the_first_failure_marked(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, saved(VERIFIED, tmp_path)) as seen:
        chart = seen.page.locator(".chart.activations").first
        assert seen.count(".chart.activations .fault") == 1
        chart.press("End")
        assert seen.texts("#tip") == [
            "tower.conv\naten.convolution, F16, forward, step 7: largest magnitude 65504\n4 NaN or inf"
        ]
