"""Plots: formats by suffix, the same bytes each time, any names, and everything drawn."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hostile import NAMES
from sample_reports import PUBLISHED, report, tensor
from sample_verifications import FAILURE, VERIFICATION, activation, verified

from gemma_doctor.errors import UsageError
from gemma_doctor.records import Report
from gemma_doctor.reports.plots import FORMATS, save_plot
from gemma_doctor.tensors import Role, TensorStats

MAGIC = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml", ".pdf": b"%PDF-"}
SVG = "{http://www.w3.org/2000/svg}"
ROLES: tuple[Role, ...] = ("conv", "linear", "norm", "embedding", "bias", "other")


def drawn(shown: Report, folder: Path) -> str:
    """The plot as SVG, which keeps each text in a comment."""
    save_plot(shown, folder / "plot.svg")
    return (folder / "plot.svg").read_text(encoding="utf-8")


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314  # our own


def outline(path: str) -> tuple[float, ...]:
    """A path's coordinates from its first point."""
    numbers = [float(number) for number in re.findall(r"-?[0-9.]+", path)]
    return tuple(round(number - numbers[place % 2], 2) for place, number in enumerate(numbers))


def texts(svg: str) -> list[str]:
    return re.findall(r"<!-- (.*?) -->", svg)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_suffix_says_the_format_and_the_bytes_are_the_same_each_time(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix.upper()}"
    for path in (first, second):
        save_plot(report(tensors=PUBLISHED), path)
    assert first.read_bytes().startswith(MAGIC[suffix])
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["plot", "plot.gif", "plot.svgz"])
def test_another_suffix_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.png, \.svg or \.pdf"):
        save_plot(report(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing/plot\.png cannot be written"):
        save_plot(report(), tmp_path / "missing" / "plot.png")


def test_every_role_has_a_marker_of_its_own_and_is_in_the_legend(tmp_path: Path) -> None:
    svg = drawn(report(tensors=[tensor(f"{role}.weight", 2.0, role) for role in ROLES]), tmp_path)
    assert set(ROLES) <= set(texts(svg))
    root = parsed(svg)
    found = [group.find(f".//{SVG}path") for group in root.iter(f"{SVG}g") if group.get("id", "").startswith("PathC")]
    shapes = {outline(path.get("d", "")) for path in found if path is not None}
    assert len(shapes) == len(ROLES)


def test_the_limits_the_verdict_and_the_largest_convolution_are_named(tmp_path: Path) -> None:
    said = texts(drawn(report(tensors=PUBLISHED), tmp_path))
    assert {"65504", "32752", "256", "some model/"} <= set(said)
    assert "Healthy. Every measured weight fits float16." in said
    assert "timm_model.msfa.ffn.pw_proj.conv  98" in said


def test_every_tensor_is_a_point(tmp_path: Path) -> None:
    tensors = [tensor(f"layers.{number}.weight", 1 + number / 70) for number in range(167)]
    svg = drawn(report(tensors=tensors), tmp_path)
    points = next(group for group in parsed(svg).iter(f"{SVG}g") if group.get("id") == "PathCollection_1")
    assert len(list(points.iter(f"{SVG}use"))) == 167


def test_zeros_and_nonfinite_tensors_are_shown_at_the_edges(tmp_path: Path) -> None:
    zero = tensor("zero", stats=TensorStats(count=64, zeros=64, minimum=0.0, maximum=0.0))
    broken = tensor("broken", stats=TensorStats(count=64, nan=60, minimum=-1.0, maximum=1.0))
    assert {"zero", "NaN, inf"} <= set(texts(drawn(report(tensors=[zero, broken]), tmp_path)))
    assert {"zero", "NaN, inf"}.isdisjoint(texts(drawn(report(), tmp_path)))


@pytest.mark.parametrize("magnitude", [1e-8, 6e-4, 6.1e-4, 1e-3, 3e-2, 2.5e4, 2.5e5, 1e9])
def test_no_words_at_the_edges_lie_over_a_power_of_ten(tmp_path: Path, magnitude: float) -> None:
    zero = tensor("zero", stats=TensorStats(count=64, zeros=64, minimum=0.0, maximum=0.0))
    broken = tensor("broken", stats=TensorStats(count=64, nan=60, minimum=-magnitude, maximum=magnitude))
    svg = drawn(report(tensors=[zero, broken, tensor("least", absmax=magnitude)]), tmp_path)
    heights = re.findall(r"<!-- (.*?) -->\s*<g [^>]*translate\([-0-9.]+ ([-0-9.]+)\)", svg)
    edges = [float(height) for words, height in heights if words in {"zero", "NaN, inf"}]
    ticks = [float(height) for words, height in heights if "10^{" in words]
    assert edges
    assert ticks
    assert min(abs(edge - tick) for edge in edges for tick in ticks) > 9  # points, as high as the words are


@pytest.mark.parametrize("tensors", [[], [tensor("all.nan", stats=TensorStats(count=2, nan=2))]])
def test_a_report_without_a_magnitude_can_be_drawn(tmp_path: Path, tensors: list[object]) -> None:
    assert "65504" in texts(drawn(report(tensors=tensors), tmp_path))  # type: ignore[arg-type]


def test_hostile_names_are_drawn_as_text(tmp_path: Path) -> None:
    shown = report(tensors=[tensor(f"{name}.{number}.weight", 98.0, "conv") for number, name in enumerate(NAMES)])
    svg = drawn(shown, tmp_path)
    tags = {element.tag.rpartition("}")[2] for element in parsed(svg).iter()}
    assert "script" not in tags
    assert "a" not in tags


def test_of_a_verification_every_operation_is_a_point_and_what_failed_is_named(tmp_path: Path) -> None:
    many = [activation(f"aten.op{number}") for number in range(7)]
    svg = drawn(replace(verified(), activations=(*many, FAILURE.activation)), tmp_path)
    assert {"forward", "text run", "tower.conv  aten.convolution", "NaN, inf"} <= set(texts(svg))
    points = next(group for group in parsed(svg).iter(f"{SVG}g") if group.get("id") == "PathCollection_1")
    assert len(list(points.iter(f"{SVG}use"))) == 7  # the one that failed is at the edge
    sound = replace(VERIFICATION, runs=tuple(replace(run, first_failure=None) for run in VERIFICATION.runs))
    assert "tower.conv  aten.convolution" not in texts(drawn(verified(sound), tmp_path))


def test_a_long_verdict_is_whole(tmp_path: Path) -> None:
    """It was cut in its middle, and the ellipsis written as an escape."""
    said = texts(drawn(verified(), tmp_path))
    assert any(text.startswith("Healthy") or text.endswith("fails first.") for text in said)
    assert not any("\\u2026" in text for text in said)
    far = texts(drawn(replace(report(), source=replace(report().source, uri="x" * 300)), tmp_path))
    assert any("…" in text for text in far)


def test_what_is_not_float16_is_pale_and_says_so(tmp_path: Path) -> None:
    """Float16's limits do not bound it."""
    both = (activation(), replace(activation(), dtype="F32", step=8))
    said = texts(drawn(replace(verified(), activations=both), tmp_path))
    assert {"forward", "forward, not float16"} <= set(said)
    assert "forward, not float16" not in texts(drawn(replace(verified(), activations=both[:1]), tmp_path))
