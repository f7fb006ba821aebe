"""The picture of every weight, or of every operation that ran, as PNG, SVG or PDF: largest magnitudes in their order.

matplotlib takes half a second to load, so it is loaded when a figure is drawn. Same report, same bytes: no date, no
random ids.
"""
# ruff: noqa: PLC0415  # as above

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_doctor.errors import UsageError
from gemma_doctor.records import Report
from gemma_doctor.reports.names import elide, safe_text
from gemma_doctor.reports.plot_data import Callout, Dots, Picture, picture
from gemma_doctor.reports.wording import verdict
from gemma_doctor.tensors import FP16_MAX

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
_INK, _QUIET, _BAD = "#1c1e21", "#5d646c", "#b3261e"
_LIMITS = (
    (FP16_MAX, "65504", "-", _BAD),
    (FP16_MAX / 2, "32752", "--", "#8a5a00"),
    (256.0, "256", ":", "#8a5a00"),
)
_LEAST = 1e-8  # smaller magnitudes are drawn there
_LATIN = 0x250  # characters below it, and the ellipsis, are in the font; others are written as escapes
_WIDE = 180  # characters that fit across the figure in the verdict's size
_MANY = 2000  # points beyond which each is drawn smaller
_BOTTOM, _TOP = 0.015, 0.985  # shares of the height, for zeros and for NaN or inf


def save_plot(report: Report, path: Path) -> None:
    """Draw the largest magnitude of every weight in model order; of a verification, of every operation as it ran.

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

    shown = picture(report)
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    axes = figure.add_subplot()
    _scale(axes, shown)
    for dots in shown.dots:
        _points(axes, dots, 18 if shown.count < _MANY else 8)
    _limits(axes)
    _parts(axes, shown)
    for callout in shown.callouts:
        _name(axes, callout, shown.count)
    axes.set_title(
        _text(report.source.uri), loc="left", fontsize=13, fontweight="bold", color=_INK, parse_math=False, pad=24
    )
    said = _text(verdict(report), _WIDE)
    axes.text(0, 1.02, said, transform=axes.transAxes, fontsize=9.5, color=_QUIET, parse_math=False)
    if shown.dots:
        figure.legend(loc="outside lower left", ncols=len(shown.dots), frameon=False, fontsize=9)
    return figure


def _scale(axes: Axes, shown: Picture) -> None:
    """Axes that hold every magnitude and all limits, with room for zeros below and NaN or inf above."""
    sizes = [size for dots in shown.dots for _, size in dots.sizes]
    least, most = max(min(sizes, default=1.0), _LEAST), max(*sizes, 2 * FP16_MAX, FP16_MAX)
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter("")  # of a narrow range there would be words between powers of ten, too
    # The edges lie far from any power of ten, whose words would lie over theirs.
    axes.set_ylim(10.0 ** math.floor(math.log10(least)) / 6, 10.0 ** math.ceil(math.log10(most)) * 6)
    axes.set_xlim(-0.01 * shown.count - 1, 1.01 * shown.count + 1)
    axes.set_ylabel("largest finite magnitude", color=_QUIET)
    axes.set_xlabel(shown.across, color=_QUIET, labelpad=16)
    axes.tick_params(colors=_QUIET, which="both", length=0)
    axes.grid(axis="y", color="#e3e3dd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _points(axes: Axes, dots: Dots, area: int) -> None:
    """The points of one kind: by magnitude; zeros at the lower edge; those with NaN or inf at the upper."""
    faces = {} if dots.marker in "x_" else {"facecolors": "none"}
    style: dict[str, Any] = {"marker": dots.marker, "color": dots.colour, "s": area, "linewidths": 1.0, **faces}
    places, sizes = [place for place, _ in dots.sizes], [max(size, _LEAST) for _, size in dots.sizes]
    axes.scatter(places, sizes, label=dots.label, **style)
    for edge, height, words in ((dots.zeros, _BOTTOM, "zero"), (dots.broken, _TOP, "NaN, inf")):
        if edge:
            axes.scatter(edge, [height] * len(edge), transform=axes.get_xaxis_transform(), **style)
            _note(axes, words, (0, height), (-6, 0), xycoords="axes fraction", ha="right", va="center", color=_QUIET)


def _note(axes: Axes, words: str, at: tuple[float, float], shift: tuple[float, float], **style: Any) -> None:  # noqa: ANN401
    """Words beside a place, so many points away from it."""
    given = {"fontsize": 9, "color": _INK, "parse_math": False, **style}
    axes.annotate(words, at, xytext=shift, textcoords="offset points", **given)


def _limits(axes: Axes) -> None:
    """The limits, their numbers beside the points and not over them; those below all points are left out."""
    least, _ = axes.get_ylim()
    for value, words, style, colour in _LIMITS:
        if value < least:
            continue
        axes.axhline(value, color=colour, linestyle=style, linewidth=1.2)
        side = "top" if value == FP16_MAX / 2 else "bottom" if value == FP16_MAX else "center"
        _note(axes, words, (1, value), (4, 0), xycoords=("axes fraction", "data"), va=side, fontweight="bold")


def _parts(axes: Axes, shown: Picture) -> None:
    """Where the parts of the axis begin, named where there is room."""
    axes.set_xticks([])
    for start, stop, name in shown.parts:
        axes.axvline(start - 0.5, color="#d4d4cc", linewidth=0.8, linestyle=":")
        if stop - start > shown.count * len(name) / 140:
            _note(axes, _text(name), (start, 0), (3, -12), xycoords=("data", "axes fraction"), color=_QUIET)


def _name(axes: Axes, callout: Callout, count: int) -> None:
    """A name beside its point, on the side where there is room."""
    shift, side = (-7, "right") if callout.place > count / 2 else (7, "left")
    style: dict[str, Any] = {"ha": side, "va": "center", "fontsize": 8, "family": "monospace"}
    if callout.size is not None:
        _note(axes, _text(callout.words), (callout.place, callout.size), (shift, 0), **style)
        return
    ring: dict[str, Any] = {"s": 110, "facecolors": "none", "edgecolors": _BAD, "linewidths": 1.5, "clip_on": False}
    axes.scatter([callout.place], [_TOP], transform=axes.get_xaxis_transform(), **ring)
    style |= {"color": _BAD, "xycoords": ("data", "axes fraction")}
    _note(axes, _text(callout.words), (callout.place, _TOP), (shift, -14), **style)


def _text(text: str, most: int = 100) -> str:
    """What the font can show of a stranger's text, in at most so many characters; the rest as escapes."""
    return "".join(
        char if ord(char) < _LATIN or char == "…" else char.encode("unicode_escape").decode()
        for char in elide(safe_text(text), most)
    )
