"""What the page is made of: model order, layers by role, shares of float16's range, and the script's data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_strategies import reports
from sample_reports import PUBLISHED, finding, report, tensor

from gemma_doctor.records import Report
from gemma_doctor.reports.layers import LEVELS, Cell, stacks
from gemma_doctor.reports.order import Place, in_model_order, place, towers
from gemma_doctor.reports.page_data import payload
from gemma_doctor.reports.page_filters import FILTERS
from gemma_doctor.reports.reach import along, gravest, shares, worst
from gemma_doctor.tensors import TensorStats

NAMES = st.lists(st.sampled_from(["model", "layers", "0", "2", "10", "weight", ""]), min_size=1, max_size=5).map(
    ".".join
)
number, percent = FILTERS["number"], FILTERS["percent"]


def test_layers_are_in_the_order_of_their_numbers() -> None:
    names = ["layers.10.w", "layers.2.w", "layers.2.a", "embed", "layers.w"]
    ordered = [one.info.name for one in in_model_order(map(tensor, names))]
    assert ordered == ["embed", "layers.2.a", "layers.2.w", "layers.10.w", "layers.w"]


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("model.layers.3.mlp.experts.7.weight", Place("model.layers", 3)),
        ("timm_model.blocks.2.21.attn.weight", Place("timm_model.blocks.2", 21)),
        ("0.weight", Place("", 0)),
        ("conv1d.weight", Place("", None)),
        ("layers.٣.weight", Place("", None)),
    ],
)
def test_a_name_says_its_layer(name: str, where: Place) -> None:
    assert place(name) == where


@given(st.lists(NAMES, max_size=20))
def test_the_parts_of_a_model_follow_one_another(names: list[str]) -> None:
    ordered = in_model_order(map(tensor, names))
    found = towers(ordered)
    assert [start for start, _, _ in found] == [0, *(stop for _, stop, _ in found)][: len(found)]
    assert sum(stop - start for start, stop, _ in found) == len(names)


def test_the_parts_of_gemma_are_its_towers() -> None:
    names = ["model.audio_tower.a", "model.language_model.a", "model.language_model.b", "model.vision_tower.c"]
    assert towers(map(tensor, names)) == [(0, 1, "audio_tower"), (1, 3, "language_model"), (3, 4, "vision_tower")]


@given(st.lists(NAMES, max_size=30))
def test_every_tensor_lies_in_one_cell(names: list[str]) -> None:
    found = stacks(in_model_order(map(tensor, names)))
    positions = [position for stack in found for _, cells in stack.rows for cell in cells for position in cell.tensors]
    assert sorted(positions) == list(range(len(names)))
    assert all(len(cells) == len(stack.layers) for stack in found for _, cells in stack.rows)


def test_many_layers_are_folded() -> None:
    (stack,) = stacks([tensor(f"layers.{index}.w", 1.0 + index) for index in range(1000)])
    assert len(stack.layers) <= 64
    assert stack.layers[:2] == ("0 to 15", "16 to 31")
    ((_, cells),) = stack.rows
    assert cells[0].absmax == 16.0
    assert cells[0].worst == "layers.15.w"


@pytest.mark.parametrize(
    ("absmax", "level"), [(None, None), (0.0, None), (0.06, 0), (0.0625, 1), (256.0, 7), (32752.0, 8)]
)
def test_a_cell_s_colour_begins_at_its_level(absmax: float | None, level: int | None) -> None:
    assert Cell("0", (0,), absmax, "w", 0).level == level
    assert list(LEVELS) == sorted(LEVELS)


@given(st.lists(st.integers(0, 50), min_size=6, max_size=6))
def test_the_shares_of_a_tensor_are_all_its_elements(parts: list[int]) -> None:
    nan, inf, zeros, overflow, subnormal, underflow = parts
    stats = TensorStats(
        count=sum(parts) + 7,
        nan=nan,
        inf=inf,
        zeros=zeros,
        fp16_overflow=overflow,
        fp16_subnormal=subnormal,
        fp16_underflow=underflow,
    )
    found = shares(tensor("a", stats=stats))
    assert sum(share.count for share in found) == stats.count
    assert math.isclose(sum(share.share for share in found), 1)
    assert all(math.isclose(two.start, one.start + one.share) for one, two in pairwise(found))
    assert {share.kind: share.count for share in found}["normal"] == 7


def test_the_worst_tensors_come_first_and_zeros_fit() -> None:
    broken = tensor("broken", stats=TensorStats(count=4, nan=1, minimum=0.5, maximum=1.0, squares=Fraction(2)))
    zero = tensor("zero", stats=TensorStats(count=4, zeros=4, minimum=0.0, maximum=0.0))
    warned, noted, tight, large = (tensor(name, 2.0) for name in ("warned", "noted", "tight", "large"))
    tight = replace(tight, limit=4.0)
    severities = gravest(
        [
            finding(severity="note", tensor="warned"),
            finding(severity="warning", tensor="warned"),
            finding(severity="note", tensor="noted"),
            finding(severity="error", tensor=None),
        ]
    )
    assert severities == {"warned": "warning", "noted": "note"}
    found = worst([large, zero, noted, warned, tight, broken], severities, 5)
    assert [one.info.name for one in found] == ["broken", "warned", "noted", "tight", "large"]


def test_a_magnitude_lies_along_the_range_by_its_logarithm() -> None:
    assert (along(0.0), along(None), along(2.0**-32), along(2.0**20)) == (None, None, 0.0, 1.0)
    assert along(2.0**-6) == 0.5
    assert (along(5e-324), along(math.inf)) == (0.0, 1.0)


@given(reports)
def test_the_data_is_strict_json_without_markup_and_keeps_every_figure(any_report: Report) -> None:
    ordered = in_model_order(any_report.tensors)
    text = payload(any_report, ordered, stacks(ordered), None)
    assert text.isascii()
    assert {"<", ">", "&"}.isdisjoint(text)
    columns = json.loads(text)["tensors"]
    for place_, one in enumerate(ordered):
        for key, value in (("absmax", one.stats.absmax), ("min", one.stats.minimum), ("rms", one.stats.rms)):
            kept = columns[key][place_]
            wanted = None if isinstance(value, float) and not math.isfinite(value) else value
            assert kept == wanted or int(kept) == wanted
        assert columns["zeros"][place_] == one.stats.zeros


def test_integers_that_a_browser_would_round_are_strings() -> None:
    big = tensor("big", dtype="I64", stats=TensorStats(count=1, minimum=2**53 + 1, maximum=2**53 + 1))
    columns = json.loads(payload(report(tensors=[big]), [big], [], None))["tensors"]
    assert columns["max"] == [str(2**53 + 1)]


def test_findings_name_the_positions_of_their_tensors() -> None:
    sick = report(
        [finding(tensor=PUBLISHED[1].info.name), finding(tensor="not.measured"), finding(tensor=None)], PUBLISHED
    )
    ordered = in_model_order(PUBLISHED)
    found = json.loads(payload(sick, ordered, [], None))["findings"]
    assert found == [[ordered.index(PUBLISHED[1]), "GD102", 0]]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "\N{EN DASH}"),
        (0.0, "0"),
        (98.0, "98"),
        (33.75, "33.75"),
        (0.07698765, "0.07699"),
        (65504.0, "65,504"),
        (-1234.5678, "\N{MINUS SIGN}1,235"),
        (1.5e7, "1.500e7"),
        (2.0**-30, "9.313e-10"),
        (2**64, "1.845e19"),
    ],
)
def test_numbers_are_written_to_four_digits(value: float | None, words: str) -> None:
    assert number(value) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (None, "\N{EN DASH}"),
        (0.0, "0 %"),
        (1e-9, "under 0.01 %"),
        (0.0123, "1.23 %"),
        (1 - 1e-9, "over 99.99 %"),
        (1.0, "100 %"),
    ],
)
def test_shares_are_never_rounded_to_none_or_to_all(share: float | None, words: str) -> None:
    assert percent(share) == words
