"""The picture of every weight, as PNG, SVG or PDF: largest magnitudes in model order, convolutions as green crosses.

matplotlib takes half a second to load, so it is loaded when a figure is drawn. Same report, same bytes: no date, no
random ids.
"""
# ruff: noqa: PLC0415  # as above

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_doctor.errors import UsageError
from gemma_doctor.records import Report
from gemma_doctor.reports.names import elide, safe_text
from gemma_doctor.reports.order import in_model_order, towers
from gemma_doctor.reports.wording import verdict
from gemma_doctor.tensors import FP16_MAX, MeasuredTensor, Role

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "save_plot"]

FORMATS = (".png", ".svg", ".pdf")
"""What a plot can be, by the suffix of its file."""

_METADATA: Mapping[str, dict[str, Any]] = {
    ".png": {"Software": "gemma-doctor"},
    ".svg": {"Date": None, "Creator": "gemma-doctor"},
    ".pdf": {"CreationDate": None, "Creator": "gemma-doctor"},
}
_STYLES: Mapping[Role, tuple[str, str]] = {
    "linear": ("o", "#64748b"),
    "norm": ("^", "#7c3aed"),
    "embedding": ("s", "#c2410c"),
    "bias": ("_", "#0e7490"),
    "other": ("D", "#9d174d"),
    "conv": ("x", "#15803d"),
}
"""Marker and colour of each role; the last is drawn on top."""

_LIMITS = (
    (FP16_MAX, "65504", "-", "#b3261e"),
    (FP16_MAX / 2, "32752", "--", "#8a5a00"),
    (256.0, "256", ":", "#8a5a00"),
)
_INK, _QUIET = "#1c1e21", "#5d646c"
_LEAST = 1e-8  # smaller magnitudes are drawn there
_CALLOUTS = 3  # largest convolutions that are named
_LATIN = 0x250  # characters below it are in the font; others are written as escapes


def save_plot(report: Report, path: Path) -> None:
    """Draw the largest magnitude of every weight in model order.

    Args:
        report: What to draw.
        path: Where to write; the suffix says the format.

    Raises:
        UsageError: The suffix is none of :data:`FORMATS`, or the file cannot be written.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise UsageError(f"{path} has no suffix that says how to draw: name a file that ends in .png, .svg or .pdf")
    import matplotlib as mpl

    held = io.BytesIO()
    with mpl.rc_context({**mpl.rcParamsDefault, "svg.hashsalt": "gemma-doctor", "backend": "agg"}):
        figure = _figure(report)
        figure.savefig(held, format=kind[1:], dpi=160, bbox_inches="tight", pad_inches=0.2, metadata=_METADATA[kind])
    try:
        path.write_bytes(held.getvalue())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def _figure(report: Report) -> Figure:
    from matplotlib.figure import Figure

    ordered = in_model_order(report.tensors)
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    axes = figure.add_subplot()
    _scale(axes, ordered)
    for role in _STYLES:
        _points(axes, role, ordered)
    _limits(axes, max(len(ordered) - 1, 1))
    _towers(axes, ordered)
    _name_largest(axes, ordered)
    axes.set_title(
        _text(report.source.uri), loc="left", fontsize=13, fontweight="bold", color=_INK, parse_math=False, pad=24
    )
    axes.text(0, 1.02, _text(verdict(report)), transform=axes.transAxes, fontsize=9.5, color=_QUIET, parse_math=False)
    if ordered:
        figure.legend(loc="outside lower left", ncols=len(_STYLES), frameon=False, fontsize=9)
    return figure


def _scale(axes: Axes, ordered: Sequence[MeasuredTensor]) -> None:
    """Axes that hold every magnitude and all limits, with room for zeros below and NaN or inf above."""
    sizes = [tensor.stats.absmax for tensor in ordered if tensor.stats.absmax]
    axes.set_yscale("log")
    axes.set_ylim(max(min(sizes, default=1.0), _LEAST) / 6, max(*sizes, 2 * FP16_MAX, FP16_MAX) * 4)
    axes.set_xlim(-0.01 * len(ordered) - 1, 1.01 * len(ordered) + 1)
    axes.set_ylabel("largest finite magnitude", color=_QUIET)
    axes.set_xlabel("tensors in model order", color=_QUIET, labelpad=16)
    axes.tick_params(colors=_QUIET, which="both", length=0)
    axes.grid(axis="y", color="#e3e3dd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _points(axes: Axes, role: Role, ordered: Sequence[MeasuredTensor]) -> None:
    """The tensors of one role: by magnitude; zeros at the lower edge; those with NaN or inf at the upper."""
    marker, colour = _STYLES[role]
    of_role = [(place, tensor.stats) for place, tensor in enumerate(ordered) if tensor.role == role]
    if not of_role:
        return
    faces = {} if marker in "x_" else {"facecolors": "none"}
    style: dict[str, Any] = {"marker": marker, "color": colour, "s": 18, "linewidths": 1.0, **faces}
    broken = [place for place, stats in of_role if stats.nan + stats.inf]
    sized = [
        (place, max(stats.absmax, _LEAST)) for place, stats in of_role if stats.absmax and place not in set(broken)
    ]
    zeros = [place for place, stats in of_role if stats.absmax == 0 and place not in set(broken)]
    axes.scatter(*_columns(sized), label=role, **style)
    for places, height, words in ((zeros, 0.015, "zero"), (broken, 0.985, "NaN, inf")):
        if places:
            axes.scatter(places, [height] * len(places), transform=axes.get_xaxis_transform(), **style)
            _note(axes, words, (0, height), (-6, 0), xycoords="axes fraction", ha="right", va="center", color=_QUIET)


def _note(axes: Axes, words: str, at: tuple[float, float], shift: tuple[float, float], **style: Any) -> None:  # noqa: ANN401
    """Words beside a place, so many points away from it."""
    given = {"fontsize": 9, "color": _INK, "parse_math": False, **style}
    axes.annotate(words, at, xytext=shift, textcoords="offset points", **given)


def _columns(pairs: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [place for place, _ in pairs], [value for _, value in pairs]


def _limits(axes: Axes, last: int) -> None:
    for value, words, style, colour in _LIMITS:
        axes.axhline(value, color=colour, linestyle=style, linewidth=1.2)
        shift, side = (-3, "top") if value == FP16_MAX / 2 else (3, "bottom")
        _note(axes, words, (last, value), (0, shift), ha="right", va=side, fontweight="bold")


def _towers(axes: Axes, ordered: Sequence[MeasuredTensor]) -> None:
    """Where the parts of the model begin, named where there is room."""
    axes.set_xticks([])
    for start, stop, name in towers(ordered):
        axes.axvline(start - 0.5, color="#d4d4cc", linewidth=0.8, linestyle=":")
        if stop - start > len(ordered) * len(name) / 140:
            _note(axes, _text(name), (start, 0), (3, -12), xycoords=("data", "axes fraction"), color=_QUIET)


def _name_largest(axes: Axes, ordered: Sequence[MeasuredTensor]) -> None:
    """Names beside the largest convolutions, if they are large; those that would overlap are left out."""
    convs = [(tensor.stats.absmax or 0.0, place) for place, tensor in enumerate(ordered) if tensor.role == "conv"]
    taken: list[float] = []
    for size, place in sorted(convs, reverse=True):
        if size < 16 or len(taken) == _CALLOUTS:  # noqa: PLR2004  # no ordinary layer has such weights
            return
        if all(other > 2 * size for other in taken):
            taken.append(size)
            shift, side = (-7, "right") if place > len(ordered) / 2 else (7, "left")
            words = _text(f"{_ending(ordered[place].info.name)}  {size:g}")
            _note(axes, words, (place, size), (shift, 0), ha=side, va="center", fontsize=8, family="monospace")


def _ending(name: str) -> str:
    """The last components of a weight's name, which tell convolutions apart."""
    return ".".join(name.removesuffix(".weight").split(".")[-5:])


def _text(text: str) -> str:
    """What the font can show of a stranger's text; the rest as escapes."""
    return "".join(
        char if ord(char) < _LATIN else char.encode("unicode_escape").decode() for char in elide(safe_text(text), 100)
    )
